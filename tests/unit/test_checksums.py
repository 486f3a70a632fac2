"""The tc filter that completes the checksums of DHCP answers. That the kernel takes the messages,
and that they make what libvirt makes, is for the emulated machine to show: tests/system/emulated.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_interface

import pytest

from vnetd.backends import netlink
from vnetd.backends.kernel import traffic_control as tc
from vnetd.core.keep import checksums
from vnetd.core.model import (
    Definition,
    IfName,
    Libvirt,
    Link,
    Mode,
    Network,
    Observed,
    Ruleset,
    World,
)
from vnetd.core.model.link import Bridge

NFTABLES = Ruleset(World.NFTABLES)
LAB = Definition("lab", Mode.NAT, bridge=IfName("vblab"), addresses=(ip_interface("10.77.0.1/24"),))
RIGHT = Link(
    5,
    IfName("vblab"),
    "bridge",
    "52:54:00:00:00:aa",
    1500,
    up=True,
    bridge=Bridge(),
    root_qdisc="htb 1:",
    checksum_filter=True,
)


def found(link: Link) -> list[str]:
    return [str(item) for item in checksums.diff([LAB], {link.name: link})]


def test_nothing_is_wrong() -> None:
    assert found(RIGHT) == []
    assert list(checksums.diff([LAB], {})) == []


@pytest.mark.parametrize("root", ["htb 1:", "noqueue 0:"])
def test_a_lost_filter_comes_back_with_what_it_hangs_on(root: str) -> None:
    drift = list(
        checksums.diff([LAB], {RIGHT.name: replace(RIGHT, root_qdisc=root, checksum_filter=False)})
    )
    assert [str(x) for x in drift] == [
        "bridge vblab has no tc filter for the checksums of DHCP answers"
    ]
    (action,) = checksums.plan([x for x in drift if isinstance(x, checksums.ChecksumFilterMissing)])
    assert (action.objects, action.bridge, action.impact) == (("network/lab",), "vblab", "none")


def test_another_queueing_discipline_is_somebodys_wish() -> None:
    (conflict,) = checksums.diff(
        [LAB],
        {RIGHT.name: replace(RIGHT, root_qdisc="fq_codel 8001:", checksum_filter=False)},
    )
    assert "has the queueing discipline fq_codel 8001:" in str(conflict)
    assert "tc qdisc del dev vblab root" in str(conflict)


def test_a_kernel_without_such_filters_lacks_none() -> None:
    assert found(replace(RIGHT, checksum_filter=None)) == []


def test_only_networks_with_rules_of_the_nftables_backend_have_it() -> None:
    networks = {
        mode.value: Network(mode.value, None, replace(LAB, mode=mode, bridge=IfName(mode)), True)
        for mode in (Mode.NAT, Mode.ROUTE, Mode.ISOLATED, Mode.OPEN, Mode.BRIDGE)
    }
    networks["off"] = Network("off", LAB, None, False)
    observed = Observed(libvirt=Libvirt("11.3.0", 1, networks), firewall=NFTABLES)
    assert checksums.bridges(observed) == {"nat", "route", "isolated"}
    assert checksums.bridges(replace(observed, firewall=Ruleset(World.IPTABLES_NFT))) == set()
    assert checksums.bridges(Observed()) == set()


def test_libvirts_filter_is_known_among_others() -> None:
    right = tc.add_filter(5).body  # the kernel shows it in the same form
    other_port = right.replace(struct.pack(">II", 0xFFFF, 68), struct.pack(">II", 0xFFFF, 69))
    no_action = right.replace(b"csum\0", b"gact\0")
    matchall = right.replace(b"u32\0", b"foo\0")
    assert other_port != right
    assert tc.completes_checksums([other_port, right])
    for other in (other_port, no_action, matchall, right[:20]):
        assert not tc.completes_checksums([other])
    assert not tc.completes_checksums([])


def test_roots_and_kinds_of_queueing_disciplines() -> None:
    def qdisc(index: int, handle: int, parent: int, kind: str) -> bytes:
        header = struct.pack("=BxxxiIII", 0, index, handle, parent, 1)
        return header + netlink.encoded(1, kind.encode() + b"\0")

    shown = [
        qdisc(1, 0, 0xFFFFFFFF, "noqueue"),
        qdisc(5, 0x10000, 0xFFFFFFFF, "htb"),
        qdisc(5, 0x20000, 0x10002, "sfq"),
        qdisc(5, 0xFFFF0000, 0xFFFFFFF1, "ingress"),
        tc.add_root(6).body,
    ]
    assert tc.roots(shown) == {1: "noqueue 0:", 5: "htb 1:", 6: "htb 1:"}
    assert tc.kinds(shown)[5] == {"htb", "sfq", "ingress"}
