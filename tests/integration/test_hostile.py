"""Users who mean no good: vnetd heals as ever meanwhile, and is no other afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.hypervisor import Hypervisor

POLICY = """
[networks.lab]
mode = "nat"
bridge = "vblab"
addresses = ["10.77.0.1/24"]
"""
# lab-user may read and plan, by the shipped rule.
CLIENTS = {
    "flood-by-nobody": ("alice", "flood", 0),
    "flood-by-a-reader": ("lab-user", "flood", 0),
    "giant": ("alice", "giant", 0),
    "vanish": ("alice", "vanish", 0),
    "churn": ("lab-user", "churn", 0),
    "fuzz": ("lab-user", "fuzz", 1_000_000),
}
HEALS = 5


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    with Hypervisor() as hypervisor:
        hypervisor.start_polkit()
        hypervisor.start_vnetd(POLICY)
        yield hypervisor


def test_vnetd_heals_while_many_do_their_worst(box: Hypervisor) -> None:
    good, config = box.rules(), box.run("cat", "/etc/vnetd/vnetd.toml")
    before = resident(box)
    for name, client in CLIENTS.items():
        box.harass(name, *client)
    for number in range(HEALS):
        # In turns: the same again and again would be a fight, in which vnetd waits.
        box.sh(f"iptables -t {('nat', 'filter')[number % 2]} -F")
        box.wait_until(lambda: box.rules() == good)
    # Root has a budget of its own.
    assert box.vnetctl("status").returncode in (0, 3)
    did = {}
    for name in CLIENTS:
        box.kill(name)
        did[name] = json.loads(box.log(name).splitlines()[-1])
    print(json.dumps(did))
    assert did["flood-by-nobody"]["calls"] > 1000
    assert did["fuzz"]["arguments"] > 1000
    box.wait_for_state("converged")
    assert box.rules() == good
    assert box.run("cat", "/etc/vnetd/vnetd.toml") == config
    assert box.vnetctl_json("plan") == []
    assert not box.succeeds("test", "-e", "/tmp/owned")
    assert "owned" not in box.run("nft", "list", "tables")
    log = box.log("vnetd")
    assert "Traceback" not in log
    assert "owned" not in log
    assert "paused" not in log
    # Not a measurement: what one user's giant messages alone would come to.
    assert resident(box) - before < 48 << 10


def resident(box: Hypervisor) -> int:
    """KiB of vnetd's own memory."""
    status = box.run("cat", f"/proc/{box.pid('vnetd')}/status")
    return int(status.partition("VmRSS:")[2].split()[0])


def test_a_message_of_31_mib_is_refused_unread(box: Hypervisor) -> None:
    long = ("gdbus", "call", "--system", "-d", "org.vnetd1", "-o", "/org/vnetd1")
    script = 'exec "$@" "$(head -c 100000 /dev/zero | tr "\\0" x)" ""'
    done = box.attempt_as("alice", "sh", "-c", script, "sh", *long, "-m", "org.vnetd1.Manager.Why")
    assert "org.vnetd1.Error.LimitsExceeded" in done.stderr
    assert "more than" in done.stderr


def hears(box: Hypervisor, listener: str) -> bool:
    """Whether it has subscribed by now: it then hears of drift that is made for it."""
    box.sh("ip link set vblab down")
    box.wait_for_state("converged")
    return "Repaired" in box.log(listener)


def test_look_alike_signals_are_not_heard(box: Hypervisor) -> None:
    """Of the bus, firewalld, systemd: broadcast, and straight to vnetd; and to a vnetctl watch."""
    box.spawn("watch", box.tool("vnetctl"), "--json", "watch")
    box.wait_until(lambda: hears(box, "watch"))
    passes = box.log("vnetd").count("pass:")
    heard = box.log("watch")
    listed = box.run("busctl", "--system", "--unique", "--no-legend", "list").splitlines()
    everybody = [("-d", line.split()[0]) for line in listed]
    assert len(everybody) >= 3
    emit = ("gdbus", "emit", "--system", "-o", "/org/vnetd1")
    repaired = ("-s", "org.vnetd1.Manager.PolicyLoaded", "['forged']", "1")
    lost = ("-s", "org.freedesktop.DBus.NameOwnerChanged", "'org.vnetd1'", "':1.1'", "''")
    reloaded = ("-s", "org.fedoraproject.FirewallD1.Reloaded")
    for to in ((), *everybody):
        # libvirtd takes anybody's broadcast for firewalld's, and writes its rules anew.
        for signal in (repaired, lost, reloaded) if to else (repaired, lost):
            box.attempt_as("alice", *emit, *to, *signal)  # some have left meanwhile
    # A true one after them: what came before it has been through.
    assert box.vnetctl("reload").returncode == 0
    box.write("/etc/vnetd/vnetd.toml", POLICY.replace("10.77.0.1/24", "10.77.0.1/23"))
    box.wait_until(lambda: "PolicyLoaded" in box.log("watch")[len(heard) :])
    assert "forged" not in box.log("watch")
    box.write("/etc/vnetd/vnetd.toml", POLICY)
    box.wait_for_state("converged")
    box.kill("watch")
    asked = box.log("vnetd").split("pass:")[passes + 1 :]
    assert not any("firewalld" in reasons.splitlines()[0] for reasons in asked)
