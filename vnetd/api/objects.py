"""Values of the core → what the bus carries. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dbus_next.signature import Variant

from vnetd import __version__
from vnetd.api.names import MANAGER, NETWORK, ROOT, network_path
from vnetd.core import why
from vnetd.core.actions import Action
from vnetd.core.model import Cause
from vnetd.core.record import Record
from vnetd.core.rules.iptables import family
from vnetd.core.status import NetworkStatus, Status
from vnetd.core.why import Answer

Properties = dict[str, Variant]
Objects = dict[str, dict[str, Properties]]
"""Path → interface → properties."""


def objects(status: Status) -> Objects:
    found: Objects = {ROOT: {MANAGER: _manager(status)}}
    for name, network in status.networks.items():
        found[network_path(name)] = {NETWORK: _network(network)}
    return found


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
    own = [a.ip for a in live.addresses if family(a) is asked.family] if live else []
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


def record(item: Record) -> Properties:
    return {
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


def changed(old: Mapping[str, Variant], new: Mapping[str, Variant]) -> Properties:
    return {name: value for name, value in new.items() if old.get(name) != value}


def plain(value: Any) -> Any:
    """Without the Variants: what JSON can carry."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _manager(status: Status) -> Properties:
    return {
        "Version": Variant("s", __version__),
        "State": Variant("s", status.state.value),
        "Mode": Variant("s", status.enforcement.value),
        "Reasons": Variant("as", list(status.reasons)),
        "Libvirt": Variant("s", status.libvirt),
        "Firewall": Variant("s", status.firewall),
        "Guard": Variant("s", status.guard),
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
    }
