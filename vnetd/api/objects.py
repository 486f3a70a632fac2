"""Values of the core → what the bus carries. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from dbus_next.signature import Variant

from vnetd import __version__
from vnetd.api import names
from vnetd.core import why
from vnetd.core.actions import Action
from vnetd.core.model import Cause, Family, Lease, State
from vnetd.core.policy import Enforcement
from vnetd.core.record import Record
from vnetd.core.status import BridgeStatus, NetworkStatus, PortStatus, Status
from vnetd.core.why import Answer
from vnetd.errors import Problem

Properties = dict[str, Variant]


@dataclass(frozen=True, slots=True)
class JobStatus:
    id: int
    kind: str
    running: bool
    done: int
    total: int
    step: str


@dataclass(frozen=True, slots=True)
class ManagerStatus:
    """What a Status says of the daemon as a whole."""

    state: State
    enforcement: Enforcement
    reasons: tuple[str, ...]
    libvirt: str
    firewall: str
    guard: str


Fact = ManagerStatus | NetworkStatus | BridgeStatus | PortStatus | JobStatus


def facts(status: Status) -> Iterator[tuple[str, Fact]]:
    """What each object says, by its path."""
    yield (
        names.ROOT,
        ManagerStatus(
            status.state,
            status.enforcement,
            status.reasons,
            status.libvirt,
            status.firewall,
            status.guard,
        ),
    )
    for network in status.networks.values():
        yield names.network_path(network.name), network
    for bridge in status.bridges.values():
        yield names.bridge_path(bridge.name), bridge
    for port in status.ports.values():
        yield names.port_path(port.device), port


def interface(fact: Fact) -> str:
    match fact:
        case ManagerStatus():
            return names.MANAGER
        case NetworkStatus():
            return names.NETWORK
        case BridgeStatus():
            return names.BRIDGE
        case PortStatus():
            return names.PORT
        case JobStatus():
            return names.JOB


def properties(fact: Fact) -> Properties:
    match fact:
        case ManagerStatus():
            return _manager(fact)
        case NetworkStatus():
            return _network(fact)
        case BridgeStatus():
            return _bridge(fact)
        case PortStatus():
            return _port(fact)
        case JobStatus():
            return _job(fact)


def action(item: Action) -> Properties:
    return {
        "action": Variant("s", str(item)),
        "objects": Variant("as", list(item.objects)),
        "reason": Variant("s", item.reason),
        "impact": Variant("s", item.impact),
    }


def answer(item: Answer) -> str:
    """As JSON: its shape grows with what is found on the way."""
    asked, live = item.question, item.question.live
    own = [a.ip for a in live.addresses if Family.of(a) is asked.family] if live else []
    return json.dumps(
        {
            "network": asked.network,
            "guest": asked.guest,
            "destination": str(asked.destination) if asked.destination else None,
            "bridge": (live.bridge if live else None) or "",
            "host": str(own[0]) if own else "",
            "free": why.free_address(live, asked.family) if live else "",
            "gateway": item.gateway,
            "verdict": item.word.value,
            "steps": [asdict(step) for step in item.steps],
        }
    )


def record(number: int, item: Record) -> Properties:
    """number: its id in the history."""
    return {
        "id": Variant("t", number),
        "time": Variant("s", item.time),
        "object": Variant("s", item.object),
        "drift": Variant("as", list(item.drift)),
        "cause": Variant("a{sv}", cause(item.cause)),
        "actions": Variant("as", list(item.actions)),
        "ms": Variant("u", item.ms),
        "outcome": Variant("s", item.outcome.value),
    }


def cause(item: Cause | None) -> Properties:
    """Empty where the kernel does not tell."""
    if item is None:
        return {}
    return {
        "process": Variant("s", item.process),
        "pid": Variant("u", item.pid),
        "parents": Variant("as", list(item.parents)),
    }


def lease(item: Lease) -> Properties:
    return {
        "network": Variant("s", item.network),
        "mac": Variant("s", item.mac),
        "address": Variant("s", str(item.address)),
        "name": Variant("s", item.name),
        "expires": Variant("t", item.expires),
    }


def problem(item: Problem) -> Properties:
    return {
        "file": Variant("s", item.file),
        "line": Variant("u", item.line),
        "key": Variant("s", item.key),
        "wrong": Variant("s", item.wrong),
        "right": Variant("s", item.right),
    }


def _manager(manager: ManagerStatus) -> Properties:
    return {
        "Version": Variant("s", __version__),
        "State": Variant("s", manager.state.value),
        "Mode": Variant("s", manager.enforcement.value),
        "Reasons": Variant("as", list(manager.reasons)),
        "Libvirt": Variant("s", manager.libvirt),
        "Firewall": Variant("s", manager.firewall),
        "Guard": Variant("s", manager.guard),
    }


def _network(network: NetworkStatus) -> Properties:
    return {
        "Name": Variant("s", network.name),
        "State": Variant("s", network.state.value),
        "Kept": Variant("s", network.kept.value),
        "UUID": Variant("s", network.uuid),
        "Mode": Variant("s", network.mode),
        "Bridge": Variant("s", network.bridge),
        "Active": Variant("b", network.active),
        "Autostart": Variant("b", network.autostart),
        "Addresses": Variant("as", list(network.addresses)),
        "Guard": Variant("s", network.guard),
        "Drift": Variant("as", list(network.drift)),
        "Reasons": Variant("as", list(network.reasons)),
        "Upstream": Variant("as", list(network.upstream)),
    }


def _bridge(bridge: BridgeStatus) -> Properties:
    return {
        "Name": Variant("s", bridge.name),
        "State": Variant("s", bridge.state.value),
        "Kept": Variant("s", bridge.kept.value),
        "Networks": Variant("as", list(bridge.networks)),
        "Present": Variant("b", bridge.present),
        "Up": Variant("b", bridge.up),
        "MAC": Variant("s", bridge.mac),
        "MTU": Variant("u", bridge.mtu),
        "STP": Variant("b", bridge.stp),
        "Addresses": Variant("as", list(bridge.addresses)),
        "Ports": Variant("as", list(bridge.ports)),
        "Drift": Variant("as", list(bridge.drift)),
        "Reasons": Variant("as", list(bridge.reasons)),
    }


def _port(port: PortStatus) -> Properties:
    forwarding = "" if port.forwarding is None else port.forwarding.name.lower()
    return {
        "Device": Variant("s", port.device),
        "State": Variant("s", port.state.value),
        "Domain": Variant("s", port.domain),
        "Network": Variant("s", port.network),
        "Bridge": Variant("s", port.bridge),
        "Plugged": Variant("b", port.plugged),
        "MAC": Variant("s", port.mac),
        "Isolated": Variant("b", port.isolated),
        "Forwarding": Variant("s", forwarding),
        "Drift": Variant("as", list(port.drift)),
    }


def _job(job: JobStatus) -> Properties:
    return {
        "Id": Variant("u", job.id),
        "Kind": Variant("s", job.kind),
        "State": Variant("s", "running" if job.running else "waiting"),
        "Done": Variant("u", job.done),
        "Total": Variant("u", job.total),
        "Step": Variant("s", job.step),
    }
