"""org.vnetd1 as busctl and others see it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dbus_next import introspection

from tests.lab.hypervisor import TREE, Hypervisor

ROOT = ("org.vnetd1", "/org/vnetd1")
MANAGER = (*ROOT, "org.vnetd1.Manager")
LAB = ("org.vnetd1", "/org/vnetd1/network/lab")


def busctl(box: Hypervisor, *arguments: str) -> Any:
    out = box.run("busctl", "--system", "--json=short", *arguments)
    return json.loads(out)["data"] if out.strip() else None


def as_user(box: Hypervisor, *argv: str) -> tuple[int, str]:
    """Not root, but able to reach this tree wherever it is."""
    user = ("--reuid=lab-user", "--regid=lab-user", "--clear-groups")
    reach = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    done = box.attempt("setpriv", *user, *reach, *argv)
    return done.returncode, done.stderr


def test_tree_shows_every_network(box: Hypervisor) -> None:
    tree = box.run("busctl", "--system", "--list", "tree", "org.vnetd1").split()
    assert set(tree) >= {
        "/org/vnetd1",
        "/org/vnetd1/network",
        *(f"/org/vnetd1/network/{name}" for name in ("free", "lab", "lan", "quiet", "routed")),
    }


def test_properties_are_read(box: Hypervisor) -> None:
    assert busctl(box, "get-property", *MANAGER, "State") == "converged"
    assert busctl(box, "get-property", *MANAGER, "Mode") == "enforce"
    assert busctl(box, "get-property", *LAB, "org.vnetd1.Network", "Bridge") == "vblab"
    addresses = busctl(box, "get-property", *LAB, "org.vnetd1.Network", "Addresses")
    assert addresses == ["10.77.0.1/24", "fd77::1/64"]


def test_methods_answer(box: Hypervisor) -> None:
    assert busctl(box, "call", *MANAGER, "Reconcile") == ["converged"]
    assert busctl(box, "call", *MANAGER, "Plan") == [[]]
    (records,) = busctl(box, "call", *MANAGER, "History")
    assert records[0]["outcome"]["data"] == "repaired"
    assert busctl(box, "call", *ROOT, "org.freedesktop.DBus.Peer", "Ping") in (None, [])
    (machine,) = busctl(box, "call", *ROOT, "org.freedesktop.DBus.Peer", "GetMachineId")
    assert machine == box.run("cat", "/etc/machine-id").strip()
    manager = ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    (objects,) = busctl(box, "call", *ROOT, *manager)
    assert set(objects) == {
        f"/org/vnetd1/network/{name}" for name in ("free", "lab", "lan", "quiet", "routed")
    }


@pytest.mark.parametrize(
    ("path", "interface"),
    [("/org/vnetd1", "Manager"), ("/org/vnetd1/network/lab", "Network")],
)
def test_introspection_is_what_the_contract_says(
    box: Hypervisor, path: str, interface: str
) -> None:
    call = ("call", "org.vnetd1", path, "org.freedesktop.DBus.Introspectable", "Introspect")
    (xml,) = busctl(box, *call)
    seen = introspection.Node.parse(xml)
    wanted = introspection.Node.parse((TREE / f"dbus/org.vnetd1.{interface}.xml").read_text())
    (contract,) = wanted.interfaces
    (found,) = [item for item in seen.interfaces if item.name == contract.name]
    assert members(found) == members(contract)
    box.run("busctl", "--system", "introspect", "org.vnetd1", path)


def members(interface: introspection.Interface) -> set[tuple[str, ...]]:
    def args(items: list[introspection.Arg]) -> tuple[str, ...]:
        return tuple(f"{item.signature} {item.name}" for item in items)

    found: set[tuple[str, ...]] = set()
    found |= {("property", item.name, item.signature) for item in interface.properties}
    found |= {("signal", item.name, *args(item.args)) for item in interface.signals}
    return found | {
        ("method", item.name, *args(item.in_args), "→", *args(item.out_args))
        for item in interface.methods
    }


def test_signals_tell_of_drift_and_repair(box: Hypervisor) -> None:
    box.spawn("signals", box.tool("vnetctl"), "--json", "watch")
    box.wait_until(lambda: hears(box, "signals"))
    already = len(box.log("signals").splitlines())
    box.sh("iptables -t nat -F")
    box.wait_until(lambda: len(box.log("signals").splitlines()) >= already + 2)
    box.kill("signals")
    drift, repaired = (json.loads(line) for line in box.log("signals").splitlines()[already:])
    assert (drift["signal"], drift["object"]) == ("DriftDetected", "network/lab")
    assert drift["cause"]["process"] == "iptables"
    assert (repaired["signal"], repaired["outcome"]) == ("Repaired", "repaired")


def hears(box: Hypervisor, listener: str) -> bool:
    """Whether it has subscribed by now: it then hears of drift that is made for it."""
    box.sh("ip link set vbfree down")
    box.wait_for_state("converged")
    return bool(box.log(listener))


def test_property_changes_are_announced(box: Hypervisor) -> None:
    match = "type='signal',interface='org.freedesktop.DBus.Properties'"
    box.spawn("changes", "busctl", "--system", "--json=short", "--match", match, "monitor")
    box.wait_until(lambda: hears(box, "changes"))
    box.run("virsh", "net-destroy", "lan")
    box.wait_until(lambda: '"Active"' in box.log("changes"))
    box.wait_for_state("converged")
    box.kill("changes")


def test_anybody_may_read_and_only_root_may_change(box: Hypervisor) -> None:
    bus = ("busctl", "--system")
    assert as_user(box, *bus, "get-property", *MANAGER, "State")[0] == 0
    assert as_user(box, *bus, "call", *MANAGER, "Plan")[0] == 0
    assert as_user(box, *bus, "call", *MANAGER, "History")[0] == 0
    for call in (("Reconcile",), ("Reload",), ("Pause", "u", "60"), ("Resume",)):
        code, said = as_user(box, *bus, "call", *MANAGER, *call)
        assert code != 0
        assert "only root" in said
    assert box.state() == "converged"
    assert as_user(box, box.tool("vnetctl"), "status")[0] == 0
    assert as_user(box, box.tool("vnetctl"), "reconcile")[0] == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("call", *MANAGER, "Nothing"), "has no method"),
        (("call", *MANAGER, "Pause", "s", "now"), "takes (u), not (s)"),
        (
            ("call", "org.vnetd1", "/org/vnetd1/network/none", "org.vnetd1.Manager", "Plan"),
            "no method",
        ),
        (("get-property", *MANAGER, "Nothing"), "has no property"),
        (("set-property", *MANAGER, "State", "s", "fine"), "cannot be set"),
        (
            ("call", *ROOT, "org.freedesktop.DBus.Properties", "GetAll", "s", "org.nothing"),
            "no interface",
        ),
    ],
)
def test_wrong_calls_get_an_error_that_helps(
    box: Hypervisor, arguments: tuple[str, ...], says: str
) -> None:
    done = box.attempt("busctl", "--system", *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bus_that_refuses_the_name_is_told_once(box: Hypervisor) -> None:
    reload = ("busctl", "--system", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus")
    conf = "/etc/dbus-1/system.d/org.vnetd1.conf"
    policy = box.path(conf).read_text()
    box.kill("vnetd")
    box.write(conf, policy.replace("<allow own", "<deny own"))
    box.run(*reload, "ReloadConfig")
    said = len(box.log("vnetd"))
    box.spawn("vnetd", box.tool("vnetd"))
    refused = "the bus refuses the name org.vnetd1"
    box.wait_until(lambda: refused in box.log("vnetd")[said:])
    # it goes on trying every second
    assert box.wait_until_quiet("vnetd")[said:].count(refused) == 1
    box.write(conf, policy)
    box.run(*reload, "ReloadConfig")
    box.wait_for_state("converged")


def test_pause_changes_nothing_until_resume(box: Hypervisor) -> None:
    good = box.rules()
    assert box.vnetctl("pause", "600").returncode == 0
    box.wait_for_state("paused")
    box.sh("iptables -t nat -F")
    assert box.vnetctl("reconcile").stdout == "paused\n"
    assert box.rules() != good
    assert box.vnetctl("resume").returncode == 0
    box.wait_for_state("converged")
    assert box.rules() == good
