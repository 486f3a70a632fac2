"""What vnetd reads of links is what ip says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.hypervisor import Hypervisor

READ = """
import asyncio, dataclasses, json
from vnetd.backends.kernel.links import Links
from vnetd.core.model import Observed

links = asyncio.run(Links(lambda: True).observe(Observed())).links
shown = lambda x: [str(item) for item in x] if isinstance(x, frozenset) else str(x)
print(json.dumps({name: dataclasses.asdict(link) for name, link in links.items()}, default=shown))
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    with Hypervisor() as hypervisor:
        yield hypervisor


def test_links_bridges_and_ports_are_read_as_ip_reads_them(box: Hypervisor) -> None:
    box.sh("""
        ip link add read0 mtu 1400 type bridge stp_state 1 forward_delay 300 ageing_time 6000 \
            priority 4096 mcast_snooping 0 group_fwd_mask 8
        ip link add read1 mtu 1400 type veth peer name read2
        ip link set read1 master read0
        bridge link set dev read1 isolated on learning off flood off mcast_flood off \
            bcast_flood off hairpin on guard on root_block on neigh_suppress on cost 7 priority 9
        ip link set read0 up
        ip link set read1 up
        ip link property add dev read2 altname read-by-another-name
        ip addr add 192.0.2.1/24 dev read0
        ip addr add 192.0.2.9 peer 192.0.2.10/32 dev read2
        ip addr add fd00::1/64 dev read0
    """)
    have = json.loads(box.run(*box.python("-c", READ)))
    said = {link["ifname"]: link for link in json.loads(box.run("ip", "-d", "-j", "addr"))}
    assert set(have) == set(said)
    for name, link in said.items():
        assert_same(have[name], link)
    assert have["read0"]["bridge"]["stp"]
    assert have["read1"]["port"]["isolated"]


def assert_same(have: Any, said: Any) -> None:
    info = said.get("linkinfo", {})
    assert have["index"] == said["ifindex"]
    assert have["kind"] == info.get("info_kind", "")
    assert have["mac"] == said["address"]
    assert have["mtu"] == said["mtu"]
    assert have["up"] == ("UP" in said["flags"])
    if have["up"]:
        assert have["carrier"] is ("NO-CARRIER" not in said["flags"])
    assert have["master"] == said.get("master")
    assert set(have["altnames"]) == set(said.get("altnames", []))
    addresses = {f"{addr['local']}/{addr['prefixlen']}" for addr in said["addr_info"]}
    assert set(have["addresses"]) == addresses
    if have["bridge"]:
        data = info["info_data"]
        assert have["bridge"]["stp"] == bool(data["stp_state"])
        for key in ("forward_delay", "hello_time", "max_age", "ageing_time"):
            assert have["bridge"][key] * 100 == data[key]
        assert have["bridge"]["priority"] == data["priority"]
        assert have["bridge"]["group_fwd_mask"] == int(data["group_fwd_mask"], 16)
        assert have["bridge"]["multicast_snooping"] == bool(data["mcast_snooping"])
        assert have["bridge"]["vlan_filtering"] == bool(data["vlan_filtering"])
    if have["port"]:
        data = info["info_slave_data"]
        for ours, ips in PORT_FLAGS.items():
            assert have["port"][ours] == data[ips], ours


PORT_FLAGS = {
    "isolated": "isolated",
    "learning": "learning",
    "unicast_flood": "flood",
    "multicast_flood": "mcast_flood",
    "broadcast_flood": "bcast_flood",
    "hairpin": "hairpin",
    "bpdu_guard": "guard",
    "root_block": "root_block",
    "neigh_suppress": "neigh_suppress",
    "cost": "cost",
    "priority": "priority",
}
