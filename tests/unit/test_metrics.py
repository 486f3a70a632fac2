"""Metrics, as the parsers of Prometheus' own client library read them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics

from tests.unit.test_entries import CAUSE
from vnetd.backends import files
from vnetd.core.metrics import Counts, Format, families, render
from vnetd.core.model import Cause, Source, State
from vnetd.core.policy import Enforcement
from vnetd.core.record import Outcome, Record
from vnetd.core.status import Kept, NetworkStatus, Status

ALERTS = Path(__file__).parents[2] / "packaging/prometheus/vnetd.rules.yml"
HOSTILE = 'a"b\\c\x1b[2J\u202e{}'
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def network(name: str, state: State) -> NetworkStatus:
    return NetworkStatus(
        name=name,
        state=state,
        kept=Kept.MANAGED,
        uuid="",
        mode="nat",
        bridge="vblab",
        active=True,
        autostart=True,
        addresses=(),
        guard="on",
        drift=(),
        reasons=(),
    )


def status() -> Status:
    networks = [network("lab", State.CONVERGED), network(HOSTILE, State.DEGRADED)]
    return Status(
        state=State.DEGRADED,
        enforcement=Enforcement.ENFORCE,
        reasons=(),
        libvirt="9.0.0",
        firewall="nftables",
        guard="owner, persist",
        networks={item.name: item for item in networks},
        bridges={},
        ports={},
    )


def record(outcome: Outcome, ms: int, *sources: Source) -> Record:
    return Record("", "network/lab", (), None, (), ms, outcome, frozenset(sources))


def counts() -> Counts:
    found = Counts()
    found.drifted(CAUSE)
    found.drifted(CAUSE)
    found.drifted(None)
    found.drifted(Cause(HOSTILE, 1))
    found.recorded(record(Outcome.REPAIRED, 40, Source.FIREWALL))
    found.recorded(record(Outcome.REPAIRED, 1200, Source.LIBVIRT, Source.LINKS))
    found.recorded(record(Outcome.REPAIRED, 90_000, Source.LIBVIRT))
    found.recorded(record(Outcome.FAILED, 5, Source.LINKS))
    found.recorded(record(Outcome.CONFLICT, 5))
    return found


def read(form: Format, found: Counts | None = None) -> Samples:
    text = render(families(found or counts(), status(), passes=7), form)
    parser = openmetrics if form is Format.OPENMETRICS else prometheus
    samples: Samples = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.documentation
        assert family.type != "unknown", family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.mark.parametrize("form", Format)
def test_both_formats_say_the_same(form: Format) -> None:
    samples = read(form)
    assert value(samples, "vnetd_passes_total") == 7
    assert value(samples, "vnetd_repairs_total", source="libvirt") == 2
    assert value(samples, "vnetd_repairs_total", source="sysctls") == 0
    assert value(samples, "vnetd_repair_failures_total", source="links") == 1
    assert value(samples, "vnetd_conflicts_total") == 1
    assert value(samples, "vnetd_drift_total", process="iptables") == 2
    assert value(samples, "vnetd_drift_total", process="unknown") == 1
    assert value(samples, "vnetd_repair_seconds_bucket", le="0.05") == 1
    assert value(samples, "vnetd_repair_seconds_bucket", le="2.5") == 2
    assert value(samples, "vnetd_repair_seconds_bucket", le="+Inf") == 3
    assert value(samples, "vnetd_repair_seconds_count") == 3
    assert value(samples, "vnetd_repair_seconds_sum") == pytest.approx(91.24)
    assert value(samples, "vnetd_state", state="degraded") == 1
    assert value(samples, "vnetd_network_state", network="lab", state="converged") == 1
    assert value(samples, "vnetd_network_state", network="lab", state="degraded") == 0
    about = {"libvirt": "9.0.0", "firewall": "nftables"}
    (info,) = (labels for name, labels in samples if name == "vnetd_build_info")
    assert about.items() <= dict(info).items()


def test_hostile_names_are_labels_and_nothing_else() -> None:
    escaped = r'a"b\c\x1b[2J\u202e{}'
    samples = read(Format.OPENMETRICS)
    assert value(samples, "vnetd_drift_total", process=escaped) == 1
    assert value(samples, "vnetd_network_state", network=escaped, state="degraded") == 1
    assert render(families(counts(), status(), passes=1), Format.OPENMETRICS).isascii()


def test_no_flood_of_process_names_fills_the_monitoring() -> None:
    found = Counts()
    for number in range(1000):
        found.drifted(Cause(f"p{number}", number))
    processes = [labels for name, labels in read(Format.OPENMETRICS, found) if "_drift_" in name]
    assert len(processes) == 51
    assert value(read(Format.OPENMETRICS, found), "vnetd_drift_total", process="other") == 950


def test_before_the_first_pass_there_are_counters_only() -> None:
    text = render(families(Counts(), None, passes=0), Format.OPENMETRICS)
    assert "vnetd_repairs_total{" in text
    assert "vnetd_state" not in text


def test_alerts_ask_for_metrics_that_there_are() -> None:
    asked = set(re.findall(r"\bvnetd_\w+", ALERTS.read_text()))
    assert asked
    assert asked <= {name for name, _ in read(Format.PROMETHEUS)}


def test_an_exporter_never_reads_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vnetd.prom"
    path.write_text("before")
    with path.open() as reading:
        files.replace_text(path, "after")
        assert reading.read() == "before"
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [item.name for item in tmp_path.iterdir()] == ["vnetd.prom"]
