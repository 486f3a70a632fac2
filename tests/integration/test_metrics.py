"""Metrics of a real vnetd: over the bus, and in a file."""

from __future__ import annotations

from typing import Any

from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics

from tests.lab.hypervisor import Hypervisor

FILE = "/run/vnetd/vnetd.prom"
DROP_IN = "/etc/vnetd/vnetd.toml.d/metrics.toml"


def count(text: str, name: str, parser: Any = openmetrics, **labels: str) -> float:
    families = parser.text_string_to_metric_families(text)
    samples = (sample for family in families for sample in family.samples)
    found = (s for s in samples if s.name == name and labels.items() <= s.labels.items())
    return float(sum(sample.value for sample in found))


def test_a_repair_counts(box: Hypervisor) -> None:
    before = box.vnetctl("metrics").stdout
    records = len(box.history())
    box.wait_until(lambda: box.succeeds("iptables", "-t", "nat", "-F"), what="a flush")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.wait_for_state("converged")
    after = box.vnetctl("metrics").stdout

    def more(name: str, **labels: str) -> float:
        return count(after, name, **labels) - count(before, name, **labels)

    new = box.history()[records:]
    assert more("vnetd_repairs_total", source="firewall") == len(new)
    assert more("vnetd_repair_seconds_count") == len(new)
    assert more("vnetd_drift_total", process="iptables") == len(new)
    assert more("vnetd_passes_total") >= 1
    assert count(after, "vnetd_network_state", network="lab", state="converged") == 1
    assert count(after, "vnetd_network_guarded", network="lab") == 1


def test_a_file_for_the_exporter_if_the_policy_says_so(box: Hypervisor) -> None:
    assert not box.succeeds("test", "-e", FILE)
    box.write(DROP_IN, f'[vnetd]\nmetrics = "{FILE}"\n')
    box.wait_until(lambda: box.succeeds("test", "-s", FILE), what=FILE)
    assert box.sh(f"stat -c %a {FILE}") == "644\n"
    assert count(box.run("cat", FILE), "vnetd_passes_total", prometheus) > 0
    box.write(DROP_IN, '[vnetd]\nmetrics = "/nowhere/vnetd.prom"\n')
    box.wait_for_state("degraded")
    box.wait_until(lambda: "/nowhere/vnetd.prom" in str(box.vnetctl_json("status")["Reasons"]))
    box.run("rm", DROP_IN)
    box.wait_for_state("converged")
