"""Objects on the bus: what is announced, in which order, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from vnetd.api import names, tree
from vnetd.api.tree import Tree
from vnetd.bus import frames, sysbus
from vnetd.core.model import State
from vnetd.core.model.link import PortState
from vnetd.core.policy import Enforcement
from vnetd.core.status import BridgeStatus, Kept, NetworkStatus, PortStatus, Status

NETWORK = NetworkStatus(
    name="lab",
    state=State.CONVERGED,
    kept=Kept.MANAGED,
    uuid="",
    mode="nat",
    bridge="vblab",
    active=True,
    autostart=True,
    addresses=("10.77.0.1/24",),
    guard="on",
    drift=(),
    reasons=(),
)
BRIDGE = BridgeStatus(
    name="vblab",
    state=State.CONVERGED,
    kept=Kept.MANAGED,
    networks=("lab",),
    present=True,
    up=True,
    mac="52:54:00:00:00:01",
    mtu=1500,
    stp=False,
    addresses=("10.77.0.1/24",),
    ports=("vnet0",),
    drift=(),
    reasons=(),
)
PORT = PortStatus(
    device="vnet0",
    state=State.CONVERGED,
    domain="g1",
    network="lab",
    bridge="vblab",
    plugged=True,
    mac="52:54:00:00:00:02",
    isolated=False,
    forwarding=PortState.FORWARDING,
    drift=(),
)


def status(
    networks: Mapping[str, NetworkStatus],
    bridges: Mapping[str, BridgeStatus] | None = None,
    ports: Mapping[str, PortStatus] | None = None,
) -> Status:
    return Status(
        state=State.CONVERGED,
        enforcement=Enforcement.ENFORCE,
        reasons=(),
        libvirt="9.0.0",
        firewall="",
        guard="",
        networks=networks,
        bridges=bridges or {},
        ports=ports or {},
    )


class Bus:
    """What was said on it: (member, path of the signal, arguments)."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, list[Any]]] = []

    def emit(self, path: str, interface: str, member: str, signature: str, body: bytes) -> None:
        message = sysbus.unmarshal(frames.signal(1, path, interface, member, signature, body))
        self.said.append((member, path, message.body))


async def announced(found: Tree) -> None:
    done = asyncio.Event()
    found.after_that(done.set)
    task = asyncio.create_task(found.announce())
    await done.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def managed(found: Tree) -> dict[str, Any]:
    body = await found.managed()
    message = frames.method_return(1, HEAD, "a{oa{sa{sv}}}", body)
    (objects,) = sysbus.unmarshal(message).body
    return dict(objects)


HEAD = frames.Head(frames.METHOD_CALL, 0, 1, 0, sender=":1.1")


def test_objects_come_change_and_go() -> None:
    bus = Bus()

    async def run() -> None:
        found = Tree(bus.emit)
        found.publish(status({"lab": NETWORK}, {"vblab": BRIDGE}, {"vnet0": PORT}))
        await announced(found)
        drifted = replace(NETWORK, state=State.DRIFTED, drift=("is not active",))
        found.publish(status({"lab": drifted}, {"vblab": BRIDGE}, {"vnet0": PORT}))
        await announced(found)
        assert found.properties("/org/vnetd1/network/lab")["State"].value == "drifted"
        found.publish(status({"lab": drifted}))
        await announced(found)
        assert set(await managed(found)) == {"/org/vnetd1/network/lab"}

    asyncio.run(run())
    added = [
        (body[0], list(body[1])) for member, _, body in bus.said if member == "InterfacesAdded"
    ]
    assert added == [
        ("/org/vnetd1/network/lab", [names.NETWORK]),
        ("/org/vnetd1/bridge/vblab", [names.BRIDGE]),
        ("/org/vnetd1/port/vnet0", [names.PORT]),
    ]
    ((path, body),) = [(p, b) for member, p, b in bus.said if member == "PropertiesChanged"]
    assert path == "/org/vnetd1/network/lab"
    assert {name: value.value for name, value in body[1].items()} == {
        "State": "drifted",
        "Drift": ["is not active"],
    }
    gone = {body[0] for member, _, body in bus.said if member == "InterfacesRemoved"}
    assert gone == {"/org/vnetd1/bridge/vblab", "/org/vnetd1/port/vnet0"}


def test_of_several_states_in_a_row_the_last_is_told() -> None:
    bus = Bus()

    async def run() -> None:
        found = Tree(bus.emit)
        found.publish(status({"lab": NETWORK}))
        await announced(found)
        bus.said.clear()
        for state in (State.DRIFTED, State.HEALING, State.CONVERGED):
            found.publish(status({"lab": replace(NETWORK, state=state)}))
        await announced(found)

    asyncio.run(run())
    assert bus.said == []


def test_the_tree_can_be_walked_and_shrinks() -> None:
    async def run() -> None:
        found = Tree(Bus().emit)
        found.publish(status({"lab": NETWORK}, {}, {"vnet0": PORT}))
        await announced(found)
        assert found.is_above("/")
        assert found.is_above("/org/vnetd1/port")
        assert '<node name="port" />' in found.introspect("/org/vnetd1").replace('"/>', '" />')
        assert names.NETWORK in found.introspect("/org/vnetd1/network/lab")
        found.publish(status({"lab": NETWORK}))
        await announced(found)
        assert not found.is_above("/org/vnetd1/port")
        assert '"port"' not in found.introspect("/org/vnetd1")
        assert found.is_above("/org/vnetd1/network")

    asyncio.run(run())


def test_thousands_of_objects_are_marshalled_once_and_in_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """500 networks, each with a bridge and 10 guests. What is counted is work, not time: how often
    anything is marshalled, and that the loop has its turns meanwhile.
    """
    marshalled = 0
    real = tree.marshal

    def count(signature: str, body: list[Any]) -> bytes:
        nonlocal marshalled
        marshalled += 1
        return real(signature, body)

    monkeypatch.setattr(tree, "marshal", count)
    networks = {f"n{n}": replace(NETWORK, name=f"n{n}") for n in range(500)}
    bridges = {f"vb{n}": replace(BRIDGE, name=f"vb{n}") for n in range(500)}
    ports = {f"vnet{n}": replace(PORT, device=f"vnet{n}") for n in range(5000)}
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def run() -> None:
        nonlocal marshalled, turns
        other = asyncio.create_task(turn())
        found = Tree(lambda *_: None)
        found.publish(status(networks, bridges, ports))
        await announced(found)
        assert marshalled == 6000
        assert turns > 20
        first = await managed(found)
        assert len(first) == 6000
        assert marshalled == 6000
        ports["vnet7"] = replace(PORT, device="vnet7", plugged=False)
        found.publish(status(networks, bridges, ports))
        await announced(found)
        second = await managed(found)
        assert marshalled == 6002  # the signal, and that one object
        assert second["/org/vnetd1/port/vnet7"][names.PORT]["Plugged"].value is False
        other.cancel()

    asyncio.run(run())
