"""libvirt's nftables backend, which deletes its rules by handle and finds bridges by index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.definitions import definition
from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import TRIXIE, Hypervisor

pytestmark = pytest.mark.usefixtures("_trespassers")

TABLE = "libvirt_network"
# For vnetd alone, and only where it looks: libvirt, which is root, writes as fast as ever.
SLOW_LISTS = """
cp /usr/sbin/nft /run/box/nft
cat >/run/box/slow-nft <<'END'
#!/bin/bash
case "$UID $*" in
"0 "* | *" -f "*) ;;
*) sleep 4 ;;
esac
exec /run/box/nft "$@"
END
chmod +x /run/box/slow-nft
mount --bind /run/box/slow-nft /usr/sbin/nft
"""
FOREIGN = 'iifname "uplink0" ip saddr 192.0.2.1 accept'


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    with Hypervisor(root=TRIXIE, backend="nftables") as hypervisor:
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_vnetd(FIVE_NETWORKS)
        let_libvirt_order(hypervisor)
        yield hypervisor


def let_libvirt_order(box: Hypervisor) -> None:
    """From its first reinstallation on libvirt keeps one order of its networks."""
    records = len(box.history())
    box.sh("nft flush ruleset")
    box.wait_until(lambda: len(box.history()) >= records + 4)
    box.wait_for_state("converged")


def heal(box: Hypervisor, script: str, good: str | None = None) -> None:
    """Break it and see libvirt's own rules come back, each once, and nothing else."""
    good, records = good or box.tables(), len(box.history())
    box.sh(script)
    box.wait_until(lambda: len(box.history()) > records, what=f"a record of {script}")
    box.wait_until(lambda: box.tables() == good, what=f"libvirt's rules after {script}")
    box.wait_for_state("converged")
    assert box.tables() == good
    assert failed(box, records) == []


def failed(box: Hypervisor, records: int) -> list[dict[str, Any]]:
    """What is on record since, and was not repaired."""
    return [record for record in box.history()[records:] if record["outcome"] != "repaired"]


def listed(box: Hypervisor) -> list[tuple[str, str, str, int]]:
    """(family, chain, rule, handle)"""
    found = []
    for family in ("ip", "ip6"):
        chain = ""
        for line in box.run("nft", "-a", "-s", "list", "table", family, TABLE).splitlines():
            if line.startswith("\tchain "):
                chain = line.split()[1]
            elif match := re.fullmatch(r"\t\t(.*) # handle (\d+)", line):
                found.append((family, chain, match[1], int(match[2])))
    return found


def of_networks(box: Hypervisor) -> list[tuple[str, str, str, int]]:
    return [rule for rule in listed(box) if rule[1] != "forward"]


@pytest.mark.parametrize(
    "script",
    [
        f"nft flush chain ip {TABLE} guest_nat",
        f"nft flush table ip {TABLE}",
        f"nft flush table ip {TABLE}; nft flush table ip6 {TABLE}",
        f"nft delete table ip {TABLE}",
        f"nft delete table ip6 {TABLE}",
        "nft flush ruleset",
        # as a restart of nftables.service does; libvirt is installing its rules when it comes again
        "nft flush ruleset; sleep 0.2; nft flush ruleset",
        f"nft flush chain ip {TABLE} forward",
        # an accept behind its reject
        f"""nft 'flush chain ip {TABLE} guest_output;
            add rule ip {TABLE} guest_output iif vblab counter reject;
            add rule ip {TABLE} guest_output ip saddr 10.77.0.0/24 iif vblab counter accept'""",
    ],
)
def test_flush_is_repaired(box: Hypervisor, script: str) -> None:
    heal(box, script)


@pytest.mark.parametrize("script", ["nft flush ruleset", f"nft delete table ip {TABLE}"])
def test_no_new_flow_is_lost_while_libvirt_installs_its_rules_again(
    box: Hypervisor, script: str
) -> None:
    guest = box.guest("vblab", "10.77.0.70/24", gateway="10.77.0.1")
    quiet = box.guest("vbquiet", "10.79.0.70/24", gateway="10.79.0.1")
    with box.probing(guest) as outage, box.probing(quiet, in_vain=True) as escape:
        heal(box, script)
    for name in (guest, quiet):
        box.run("ip", "netns", "delete", name)
    assert (outage.lost, outage.sources) == (0, ["198.51.100.1"])
    assert escape.lost == escape.sent > 0


def test_copies_go_without_asking_libvirt(box: Hypervisor) -> None:
    good = box.tables()
    for family, chain, rule, handle in listed(box)[::4]:
        heal(box, f"nft 'insert rule {family} {TABLE} {chain} {rule}'", good)
        assert (family, chain, rule, handle) in listed(box) or chain == "forward"
        actions = box.history()[-1]["actions"]
        assert not any("libvirt install" in action for action in actions)


def test_jumps_are_put_in_order(box: Hypervisor) -> None:
    handle = next(h for f, c, r, h in listed(box) if (f, c) == ("ip", "forward") and "cross" in r)
    heal(
        box,
        f"nft 'delete rule ip {TABLE} forward handle {handle};"
        f" add rule ip {TABLE} forward counter jump guest_cross'",
    )


def test_other_peoples_rules_stay(box: Hypervisor) -> None:
    box.sh(f"nft 'insert rule ip {TABLE} guest_input {FOREIGN}'")
    heal(box, f"nft flush chain ip {TABLE} guest_nat", sorted_is_enough(box))
    handle = next(handle for _, _, rule, handle in listed(box) if rule == FOREIGN)
    box.sh(f"nft delete rule ip {TABLE} guest_input handle {handle}")


def sorted_is_enough(box: Hypervisor) -> str:
    """libvirt installs at the head of a chain: what was above its rules is then below them."""
    lines = box.tables().splitlines(keepends=True)
    at = next(place for place, line in enumerate(lines) if FOREIGN in line)
    end = next(place for place in range(at, len(lines)) if lines[place] == "\t}\n")
    return "".join([*lines[:at], *lines[at + 1 : end], lines[at], *lines[end:]])


def test_history_tells_what_guests_felt_and_who_did_it(box: Hypervisor) -> None:
    known = len(box.history())
    heal(box, "nft flush ruleset")
    by_object = {record["object"]: record for record in box.history()[known:]}
    assert by_object["firewall"]["cause"]["process"] == "nft"
    # the guests had their rules again long before libvirt had installed them
    assert by_object["network/lab"]["ms"] < by_object["firewall"]["ms"]
    assert "libvirt install" in by_object["firewall"]["actions"][0]


def test_guests_get_out_again(box: Hypervisor) -> None:
    guest = box.guest("vblab", "10.77.0.50/24", gateway="10.77.0.1")
    with box.probing(guest) as outage:
        heal(box, "nft flush ruleset")
    assert not outage.still_out
    assert outage.sources == ["198.51.100.1"]


def test_destroyed_networks_leave_nothing_and_started_ones_are_as_before(box: Hypervisor) -> None:
    heal(box, "nft flush ruleset")
    good = box.tables()
    box.vnetctl("pause", "600")
    for name in ("lab", "routed", "quiet"):
        box.run("virsh", "net-destroy", name)
    assert of_networks(box) == []
    for name in ("lab", "routed", "quiet"):
        box.run("virsh", "net-start", name)
    assert sorted(box.tables().splitlines()) == sorted(good.splitlines())
    box.vnetctl("resume")
    box.wait_for_state("converged")
    heal(box, "nft flush ruleset", good)


def test_what_libvirt_deletes_is_not_deleted_too(box: Hypervisor) -> None:
    """A stopped network's rules go before it is called stopped, its record of them after."""
    records, good = len(box.history()), sorted(box.tables().splitlines())
    for script in ("net-destroy lab", "net-destroy lab; net-start lab", "net-destroy routed"):
        box.run("virsh", "-q", script)
        box.wait_until(lambda: sorted(box.tables().splitlines()) == good, what=script)
        box.vnetctl("reconcile")
        box.wait_for_state("converged")
    box.sh("ip link delete vblab")
    box.wait_until(lambda: box.succeeds("ip", "link", "show", "vblab"))
    box.wait_for_state("converged")
    assert len(box.history()) > records
    assert failed(box, records) == []
    let_libvirt_order(box)


def test_what_libvirt_forgets_to_delete_goes(box: Hypervisor) -> None:
    """A net-update that touches no rules makes libvirt forget the handles of the network's."""
    host = "<host ip='10.77.0.9'><hostname>gone</hostname></host>"
    box.run("virsh", "net-update", "lab", "add", "dns-host", host, "--live")
    left_over = len(listed(box))
    box.run("virsh", "net-destroy", "lab")
    box.wait_until(lambda: not stale(box) and len(listed(box)) == left_over, what="no leftovers")
    box.wait_for_state("converged")
    assert len(listed(box)) == len({rule[:3] for rule in listed(box)})


def test_what_starts_behind_libvirts_answer_is_not_left_over(box: Hypervisor) -> None:
    box.write("/run/box/late.xml", definition("nat-v6", 7))
    records = len(box.history())
    box.sh(SLOW_LISTS)
    try:
        full_pass = box.spawn("vnetctl", box.tool("vnetctl"), "reconcile")
        box.wait_until(lambda: box.succeeds("pgrep", "-f", "nft -a -s list"), what="a look")
        box.run("virsh", "net-create", "/run/box/late.xml")
        started = box.tables()
        box.wait_until(lambda: "nat-v6" in states(box), seconds=60, what="the network known")
        box.wait_until(lambda: box.state() == "converged", seconds=60, what="converged")
        assert box.tables() == started
        assert box.history()[records:] == []
        assert full_pass.wait(60) == 0
    finally:
        box.sh("umount --lazy /usr/sbin/nft")
    box.run("virsh", "net-destroy", "nat-v6")
    box.wait_for_state("converged")


def states(box: Hypervisor) -> dict[str, str]:
    return {network["Name"]: network["State"] for network in box.vnetctl_json("status")["Networks"]}


def stale(box: Hypervisor) -> list[str]:
    return [rule for _, _, rule, _ in listed(box) if re.search(r"[io]if \d", rule)]


def test_without_the_bus_copies_stand_in_and_it_is_said(box: Hypervisor) -> None:
    box.kill("libvirtd")
    nowhere = "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nowhere"
    box.spawn("libvirtd", "env", nowhere, "libvirtd")
    box.wait_until(lambda: box.succeeds("virsh", "-q", "uri"))
    box.wait_for_state("converged")
    try:
        box.sh("nft flush ruleset")
        said = "not on the system bus"
        box.wait_until(lambda: said in str(box.vnetctl_json("status")["Reasons"]), what=said)
        box.wait_until(lambda: len(of_networks(box)) >= 28, what="copies")
        assert all(rule.endswith('comment "vnetd"') for _, _, rule, _ in of_networks(box))
        assert box.vnetctl_json("status", "lab")["Networks"][0]["State"] == "converged"
        box.sh(f"nft flush table ip {TABLE}")
        box.wait_until(lambda: "10.77.0.0/24" in box.tables(), what="copies again")
    finally:
        box.kill("libvirtd")
        box.start_libvirtd()
    box.wait_for_state("converged")
    box.wait_until(lambda: "vnetd" not in box.tables(), what="libvirt's own rules alone")
    let_libvirt_order(box)


def test_what_it_forgot_goes_when_libvirt_moves_to_iptables(box: Hypervisor) -> None:
    good, records = sorted(box.tables().splitlines()), len(box.history())
    guest = box.guest("vblab", "10.77.0.80/24", gateway="10.77.0.1")
    box.sh(f"nft 'insert rule ip {TABLE} guest_input {FOREIGN}'")
    foreign = next(rule for rule in listed(box) if rule[2] == FOREIGN)
    box.vnetctl("pause", "600")
    forget(box, "lab")
    restart_with(box, "iptables", "iptables (nf_tables)", state="paused")
    assert len(of_networks(box)) == 15 + 1
    with box.probing(guest) as outage:
        box.vnetctl("resume")
        box.wait_until(lambda: of_networks(box) == [foreign], what="nothing but foreign rules")
        box.wait_for_state("converged")
    assert outage.lost == 0
    assert outage.sources == ["198.51.100.1"]
    (record,) = box.history()[records:]
    assert (record["object"], record["outcome"]) == ("firewall", "repaired")
    restart_with(box, "nftables", "nftables")
    box.sh(f"nft delete rule ip {TABLE} guest_input handle {foreign[3]}")
    box.run("ip", "netns", "delete", guest)
    box.wait_until(lambda: sorted(box.tables().splitlines()) == good, what="all as before")
    assert failed(box, records) == []


def test_what_it_forgot_of_stopped_networks_does_not_hide_that_it_moved(box: Hypervisor) -> None:
    records = len(box.history())
    box.vnetctl("pause", "600")
    for name in ("lab", "routed", "quiet"):
        forget(box, name)
        box.run("virsh", "net-destroy", name)
    assert len(stale(box)) >= 20
    restart_with(box, "iptables", "nftables", state="paused")  # nothing tells otherwise
    box.vnetctl("resume")
    box.wait_for_state("converged")
    assert box.vnetctl_json("status")["Firewall"] == "iptables (nf_tables)"
    assert of_networks(box) == []
    assert failed(box, records) == []
    restart_with(box, "nftables", "nftables")


def forget(box: Hypervisor, network: str) -> None:
    """libvirt, which of the rules are this network's."""
    host = "<host ip='192.0.2.9'><hostname>forget</hostname></host>"
    for command in ("add", "delete"):
        box.run("virsh", "net-update", network, command, "dns-host", host, "--live")


def test_the_backend_is_chosen_anew_when_libvirt_is_restarted_with_another(box: Hypervisor) -> None:
    restart_with(box, "iptables", "iptables (nf_tables)")
    restart_with(box, "nftables", "nftables")
    # what the other backend has left is empty, and nobody fills it
    assert "LIBVIRT_PRT" in box.run("iptables-save")
    assert "10.77.0.0" not in box.run("iptables-save")
    rule = "iptables -t nat -A LIBVIRT_PRT -s 10.77.0.0/24 -d 224.0.0.0/24 -j RETURN"
    box.sh(rule)
    assert box.vnetctl("reconcile").stdout == "degraded\n"
    (why,) = box.vnetctl_json("status", "lab")["Networks"][0]["Reasons"]
    assert "left in iptables" in why
    box.sh(rule.replace("-A", "-D"))
    box.wait_for_state("converged")


def restart_with(box: Hypervisor, backend: str, world: str, state: str = "converged") -> None:
    box.set_backend(backend)
    box.kill("libvirtd")
    box.start_libvirtd()
    box.wait_until(lambda: box.vnetctl_json("status")["Firewall"] == world, what=world)
    box.wait_for_state(state)
