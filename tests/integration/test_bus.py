"""org.vnetd1 as busctl and others see it."""

from __future__ import annotations

import json
import re
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
    assert busctl(box, "call", *MANAGER, "Reconcile") == ["/org/vnetd1/job/1"]
    assert busctl(box, "call", *MANAGER, "Plan") == [[]]
    (records,) = busctl(box, "call", *MANAGER, "History")
    assert records[0]["outcome"]["data"] == "repaired"
    assert busctl(box, "call", *ROOT, "org.freedesktop.DBus.Peer", "Ping") in (None, [])
    (machine,) = busctl(box, "call", *ROOT, "org.freedesktop.DBus.Peer", "GetMachineId")
    assert machine == box.run("cat", "/etc/machine-id").strip()
    bridges = ("vbfree", "vblab", "br0", "vbquiet", "vbrouted")
    assert managed(box) == {
        *(f"/org/vnetd1/network/{name}" for name in ("free", "lab", "lan", "quiet", "routed")),
        *(f"/org/vnetd1/bridge/{name}" for name in bridges),
    }


def managed(box: Hypervisor) -> set[str]:
    manager = ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    (objects,) = busctl(box, "call", *ROOT, *manager)
    return set(objects)


def test_a_job_has_a_path_and_an_end(box: Hypervisor) -> None:
    box.monitor_bus("jobs", "type='signal',interface='org.vnetd1.Manager',member='JobRemoved'")
    (path,) = busctl(box, "call", *MANAGER, "Reconcile")
    assert path.startswith("/org/vnetd1/job/")
    box.wait_until(lambda: path in box.log("jobs"))
    box.kill("jobs")
    line = next(line for line in box.log("jobs").splitlines() if path in line)
    number, job, result, detail = json.loads(line)["payload"]["data"]
    assert (job, result, detail) == (path, "done", "converged")
    assert path.endswith(f"/{number}")
    assert path not in managed(box)


def test_ports_and_bridges_are_objects(box: Hypervisor) -> None:
    guest = box.domain_guest("lab", "10.77.0.61/24", gateway="10.77.0.1")
    port = ("org.vnetd1", "/org/vnetd1/port/vnet0")
    box.wait_until(lambda: port[1] in managed(box))
    box.wait_for_state("converged")

    def of(path: tuple[str, str], interface: str) -> dict[str, Any]:
        call = ("call", *path, "org.freedesktop.DBus.Properties", "GetAll", "s")
        (values,) = busctl(box, *call, f"org.vnetd1.{interface}")
        return {name: value["data"] for name, value in values.items()}

    facts = of(port, "Port")
    assert facts["Domain"] == guest
    assert (facts["Network"], facts["Bridge"], facts["Plugged"]) == ("lab", "vblab", True)
    assert (facts["State"], facts["Forwarding"]) == ("converged", "forwarding")
    assert facts["MAC"].startswith("52:54:00:")
    bridge = of(("org.vnetd1", "/org/vnetd1/bridge/vblab"), "Bridge")
    assert bridge["Networks"] == ["lab"]
    assert bridge["Kept"] == "managed"
    assert "vnet0" in bridge["Ports"]
    assert {"10.77.0.1/24", "fd77::1/64"} <= set(bridge["Addresses"])
    assert of(("org.vnetd1", "/org/vnetd1/bridge/br0"), "Bridge")["Kept"] == "ignored"
    introspect_and_compare(box, port[1], "Port")
    box.run("virsh", "-q", "destroy", guest)
    box.wait_until(lambda: port[1] not in managed(box))


def test_the_history_comes_in_pages(box: Hypervisor) -> None:
    (records,) = busctl(box, "call", *MANAGER, "History")
    ids = [record["id"]["data"] for record in records]
    assert ids == sorted(ids)
    page = ("call", *MANAGER, "HistoryPage", "tu")
    (last,) = busctl(box, *page, "0", "1")
    assert last == records[-1:]
    (earlier,) = busctl(box, *page, str(ids[-1]), "2")
    assert earlier == records[-3:-1]
    assert busctl(box, *page, str(ids[0]), "10") == [[]]
    assert busctl(box, *page, str((1 << 64) - 1), "1") == [last]


@pytest.mark.parametrize(
    ("path", "interface"),
    [
        ("/org/vnetd1", "Manager"),
        ("/org/vnetd1/network/lab", "Network"),
        ("/org/vnetd1/bridge/vblab", "Bridge"),
    ],
)
def test_introspection_is_what_the_contract_says(
    box: Hypervisor, path: str, interface: str
) -> None:
    introspect_and_compare(box, path, interface)


def introspect_and_compare(box: Hypervisor, path: str, interface: str) -> None:
    call = ("call", "org.vnetd1", path, "org.freedesktop.DBus.Introspectable", "Introspect")
    (xml,) = busctl(box, *call)
    seen = introspection.Node.parse(xml)
    wanted = introspection.Node.parse((TREE / f"dbus/org.vnetd1.{interface}.xml").read_text())
    (contract,) = wanted.interfaces
    (found,) = [item for item in seen.interfaces if item.name == contract.name]
    assert members(found) == members(contract)
    properties = ("org.freedesktop.DBus.Properties", "GetAll", "s", contract.name)
    (values,) = busctl(box, "call", "org.vnetd1", path, *properties)
    types = {item.name: item.signature for item in contract.properties}
    assert {name: value["type"] for name, value in values.items()} == types
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


def test_glibs_object_manager_follows(box: Hypervisor) -> None:
    """As desktop tools are written: objects at first, then their changes, from signals alone."""
    box.spawn("glib", "/usr/bin/python3", str(TREE / "tests/lab/glib_client.py"))
    box.wait_until(lambda: "ready" in box.log("glib"))
    said = box.log("glib").splitlines()
    assert "object /org/vnetd1/network/lab org.vnetd1.Network converged" in said
    assert "object /org/vnetd1/bridge/vblab org.vnetd1.Bridge converged" in said
    assert "error org.vnetd1.Error.NoSuchNetwork" in said
    box.run("virsh", "net-define", "/dev/stdin", stdin="<network><name>new-1</name></network>")
    box.wait_until(lambda: "added /org/vnetd1/network/new_2d1" in box.log("glib"))
    box.sh("ip link set vblab down")
    change = re.compile(r"changed /org/vnetd1/bridge/vblab .*State.* Up")
    box.wait_until(lambda: change.search(box.log("glib")) is not None)
    box.run("virsh", "net-undefine", "new-1")
    box.wait_until(lambda: "removed /org/vnetd1/network/new_2d1" in box.log("glib"))
    box.wait_for_state("converged")
    box.kill("glib")


def test_gdbus_introspects_calls_and_watches(box: Hypervisor) -> None:
    gdbus = ("gdbus", "introspect", "--system", "-r", "-d", "org.vnetd1", "-o", "/org/vnetd1")
    text = box.run(*gdbus)
    assert "node /org/vnetd1/network/lab" in text
    assert "Reconcile(out o job);" in text
    call = ("gdbus", "call", "--system", "-d", "org.vnetd1", "-o", "/org/vnetd1", "-m")
    assert box.run(*call, "org.vnetd1.Manager.Plan") == "(@aa{sv} [],)\n"
    done = box.attempt(*call, "org.vnetd1.Manager.GetNetwork", "none")
    assert "org.vnetd1.Error.NoSuchNetwork: there is no network none" in done.stderr


def test_property_changes_are_announced(box: Hypervisor) -> None:
    box.monitor_bus("changes", "type='signal',interface='org.freedesktop.DBus.Properties'")
    box.run("virsh", "net-destroy", "lan")
    box.wait_until(lambda: '"Active"' in box.log("changes"))
    box.wait_for_state("converged")
    box.kill("changes")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("call", *MANAGER, "Nothing"), "has no method"),
        (("call", *MANAGER, "Pause", "s", "now"), "takes (t), not (s)"),
        (("call", *MANAGER, "Pause", "t", "0"), "from 1 to"),
        (("call", *MANAGER, "Pause", "t", str((1 << 64) - 1)), "from 1 to"),
        (("call", *MANAGER, "HistoryPage", "tu", "0", "0"), "from 1 to"),
        (("call", *LAB, "org.vnetd1.Manager", "Plan"), "has no method"),
        (
            ("call", "org.vnetd1", "/org/vnetd1/network/none", "org.vnetd1.Manager", "Plan"),
            "is no object",
        ),
        (("call", *MANAGER, "GetNetwork", "s", "none"), "no network none"),
        (("call", *MANAGER, "GetNetwork", "s", "../x"), "neither slashes"),
        (("call", *MANAGER, "GetNetwork", "s", "x" * 300), "1 to 255 bytes"),
        (("call", *MANAGER, "GetNetwork", "s", "a\nb"), "control characters"),
        (("call", *MANAGER, "Why", "ss", "none", ""), "neither a network nor"),
        (("call", *MANAGER, "Why", "ss", "lab", "$(reboot)"), "must be an IP address"),
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
    box.spawn_vnetd()
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
    assert box.vnetctl_json("status")["Reasons"][0].startswith("paused until 20")
    box.sh("iptables -t nat -F")
    assert box.vnetctl("reconcile").stdout == "paused\n"
    assert box.rules() != good
    assert box.vnetctl("resume").returncode == 0
    box.wait_for_state("converged")
    assert box.rules() == good
