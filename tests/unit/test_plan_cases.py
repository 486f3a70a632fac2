"""Recorded hosts and the plans for them: each folder of tests/cases/plan is one.

tests/cases/record writes such a folder on a real host. A plan.txt that is missing is printed.
"""

from __future__ import annotations

import json
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from vnetd.backends.firewalls import iptables_save
from vnetd.backends.libvirt import domain_xml, network_xml
from vnetd.core.diff import diff
from vnetd.core.keep.rules import RestoreRules
from vnetd.core.model import (
    Definition,
    Family,
    IfName,
    Libvirt,
    Link,
    Network,
    Observed,
    Ruleset,
    World,
)
from vnetd.core.model.link import Bridge, Port
from vnetd.core.plan import plan
from vnetd.core.policy import Policy, PolicyText, parse

CASES = sorted(path for path in (Path(__file__).parents[1] / "cases/plan").iterdir())


def observed(case: Path) -> Observed:
    networks = {}
    autostart = (case / "autostart").read_text().split()
    for name in sorted({path.name.split(".")[0] for path in (case / "networks").glob("*.xml")}):
        config, live = (case / "networks" / f"{name}.{kind}.xml" for kind in ("config", "live"))
        networks[name] = Network(name, read(config), read(live), name in autostart)
    domains = sorted((case / "domains").glob("*.xml"))
    taps = tuple(tap for path in domains for tap in domain_xml.taps(path.read_text()))
    chains = iptables_save.parse((case / "iptables-save").read_text(), Family.IPV4)
    chains |= iptables_save.parse((case / "ip6tables-save").read_text(), Family.IPV6)
    return Observed(
        # recorded before libvirt's ports were: take them as they are
        libvirt=Libvirt("9.0.0", 1, networks, taps, frozenset(tap.port for tap in taps)),
        links=links(case),
        firewall=Ruleset(World.IPTABLES_NFT, chains),
    )


def read(path: Path) -> Definition | None:
    return network_xml.parse(path.read_text()) if path.exists() else None


def links(case: Path) -> dict[IfName, Link]:
    """ip's JSON in vnetd's words."""
    found = {}
    for link in json.loads((case / "links.json").read_text()):
        info = link.get("linkinfo", {})
        name = IfName(link["ifname"])
        found[name] = Link(
            index=link["ifindex"],
            name=name,
            kind=info.get("info_kind", ""),
            mac=link.get("address", ""),
            mtu=link["mtu"],
            up="UP" in link["flags"],
            master=IfName(link["master"]) if "master" in link else None,
            bridge=bridge(info["info_data"]) if info.get("info_kind") == "bridge" else None,
            port=port(info.get("info_slave_data")),
            addresses=frozenset(
                ip_interface(f"{address['local']}/{address['prefixlen']}")
                for address in link["addr_info"]
            ),
        )
    return found


def bridge(data: dict[str, Any]) -> Bridge:
    return Bridge(stp=bool(data["stp_state"]), forward_delay=data["forward_delay"] / 100)


def port(data: dict[str, Any] | None) -> Port | None:
    return Port(isolated=data.get("isolated", False)) if data else None


def policy_of(case: Path) -> Policy:
    path = case / "policy.toml"
    if not path.exists():
        return Policy(present=False)
    return parse([PolicyText("policy.toml", path.read_text())])


def planned(case: Path) -> str:
    policy, seen = policy_of(case), observed(case)
    found = diff(policy, seen)
    lines = [f"conflict {item.object}: {item.text}" for item in found.conflicts]
    lines += [f"wait {item.object}: {item.text}" for item in found.waits]
    for action in plan(policy, seen, found):
        lines += [str(action), f"    because: {action.reason}", f"    impact: {action.impact}"]
        if isinstance(action, RestoreRules):
            for family in dict.fromkeys(item.chain.family for item in action.chains):
                edits = [item for item in action.chains if item.chain.family is family]
                lines += [f"    {line}" for line in iptables_save.render(edits).splitlines()]
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_is_the_recorded_one(case: Path) -> None:
    plan = planned(case)
    recorded = case / "plan.txt"
    assert recorded.exists(), f"no plan.txt; today's plan is:\n{plan}"
    assert plan == recorded.read_text()
