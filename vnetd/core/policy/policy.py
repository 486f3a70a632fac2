"""The whole of it: files are laid over each other, [vnetd] is read here, the rest by its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import tomli

from vnetd.core.memo import of_the_same
from vnetd.core.model import Asked, Definition, IfName
from vnetd.core.policy import bridges, networks, retention, values
from vnetd.core.policy.bridges import BridgePolicy
from vnetd.core.policy.networks import NetworkPolicy
from vnetd.core.policy.retention import Retention
from vnetd.core.policy.routing import Announce
from vnetd.core.policy.toml_lines import Path, line_of, locate
from vnetd.core.policy.toml_table import Table, merge, nearest, value_at
from vnetd.errors import PolicyError, Problem


class Enforcement(StrEnum):
    ENFORCE = "enforce"
    OBSERVE = "observe"


class Unlisted(StrEnum):
    """What happens to libvirt networks that no policy names."""

    PROTECT = "protect"
    IGNORE = "ignore"


class Coexist(StrEnum):
    """Other firewall tools, in whose own places vnetd may let networks through."""

    DOCKER = "docker"
    UFW = "ufw"
    FIREWALLD = "firewalld"


@dataclass(frozen=True, slots=True)
class Policy:
    """present: there was a policy file. Without one vnetd removes nothing."""

    enforcement: Enforcement = Enforcement.ENFORCE
    unlisted: Unlisted = Unlisted.PROTECT
    resync: float = 300.0
    history: Retention = field(default_factory=Retention)
    metrics: str | None = None
    """Where to write them, for node_exporter's textfile collector."""
    coexist: frozenset[Coexist] = frozenset(Coexist)
    networks: Mapping[str, NetworkPolicy] = field(default_factory=dict)
    bridges: Mapping[str, BridgePolicy] = field(default_factory=dict)
    present: bool = True

    def keeps(self, network: str) -> bool:
        """Managed, or protected: libvirt's own definition is then what must be."""
        return network in self.networks or self.unlisted is Unlisted.PROTECT

    def meant(self, live: Definition) -> Definition:
        """libvirt runs a network in open mode whose rules are vnetd's: to everybody but libvirt it
        is what the policy says.
        """
        want = self.networks.get(live.name)
        if want is None or want.mode is live.mode or want.libvirts_mode is not live.mode:
            return live
        return replace(live, mode=want.mode)

    @property
    @of_the_same
    def asked(self) -> Asked:
        """A port forward to a domain needs its address, a reservation for one its MAC; proxy NDP
        needs the addresses of all guests.
        """
        uplinks = frozenset(n.uplink for n in self.networks.values() if n.uplink is not None)
        links = {n.bridge for n in self.networks.values() if n.bridge is not None}
        links |= {IfName(uplink) for uplink in uplinks}
        return Asked(
            networks=bool(self.networks),
            links=frozenset(links.union(*(bridge.links for bridge in self.bridges.values()))),
            leases=frozenset(
                name
                for name, network in self.networks.items()
                if Announce.PROXY_NDP in network.announce
                or any(isinstance(forward.to, str) for forward in network.forwards)
            ),
            uplinks=uplinks,
            bridges={name: bridge.uplinks for name, bridge in self.bridges.items()},
            subnets=frozenset(x for network in self.networks.values() for x in network.subnets),
            domains=frozenset(
                host.domain
                for network in self.networks.values()
                for host in network.hosts
                if host.domain is not None
            ),
        )


@dataclass(frozen=True, slots=True)
class PolicyText:
    file: str
    text: str


def parse(
    texts: Sequence[PolicyText], *, is_wireless: Callable[[str], bool] = lambda _: False
) -> Policy:
    """The main file first, then its drop-ins: key by key, the later file wins.

    is_wireless: of an uplink, as the policy names it. Raises PolicyError with all mistakes of all
    files.
    """
    problems: list[Problem] = []
    merged: dict[str, Any] = {}
    lines: dict[Path, tuple[str, int]] = {}
    for text in texts:
        try:
            document = tomli.loads(text.text)
        except tomli.TOMLDecodeError as error:
            wrong = str(error).partition(" (at ")[0]
            line = line_of(error)
            problems.append(
                Problem(text.file, line, "", f"not valid TOML: {wrong}", "correct it there")
            )
            continue
        merge(merged, document)
        for path, line in locate(text.text).items():
            # A table is where it began; a key is where it was last set.
            if path not in lines or not isinstance(value_at(document, path), dict):
                lines[path] = (text.file, line)
    if problems:
        raise PolicyError(problems)
    root = Table(merged, (), lines, problems)
    policy = _policy(root, is_wireless)
    if problems:
        files = [text.file for text in texts]
        raise PolicyError(sorted(problems, key=lambda p: (files.index(p.file), p.line)))
    return policy


def _policy(root: Table, is_wireless: Callable[[str], bool]) -> Policy:
    general = root.table("vnetd", "write a table: [vnetd]")
    enforcement = general.enum("mode", list(Enforcement), Enforcement.ENFORCE)
    unlisted = general.enum("unlisted", list(Unlisted), Unlisted.PROTECT)
    resync = general.parsed("resync", values.duration, 'write a duration such as "5min"')
    right = 'write an absolute path that ends in ".prom", such as "/run/vnetd/vnetd.prom"'
    metrics = general.parsed("metrics", values.metrics_file, right)
    history = retention.read(general.table("history", "write history.records and history.days"))
    tools = general.list("coexist", _coexist, " or ".join(f'"{item}"' for item in Coexist))
    general.close()
    sections = root.table("networks", "write a table per network: [networks.NAME]")
    wanted = networks.read(sections)
    hosts = bridges.read(
        root.table("bridges", "write a table per bridge: [bridges.NAME]"), is_wireless
    )
    root.close()
    owned = [(n.name, n.bridge, n.addresses) for n in wanted.values() if n.mode.has_own_bridge]
    bridges.check_beside(owned, hosts, sections)
    return Policy(
        enforcement=enforcement or Enforcement.ENFORCE,
        unlisted=unlisted or Unlisted.PROTECT,
        resync=resync or Policy().resync,
        history=history,
        metrics=metrics,
        coexist=frozenset(tools if "coexist" in general else Coexist),
        networks=wanted,
        bridges=hosts,
    )


def _coexist(text: str) -> Coexist:
    try:
        return Coexist(text)
    except ValueError:
        near = nearest(text, list(Coexist))
        better = f'; do you mean "{near}"?' if near else ""
        raise ValueError(f"is not a tool that vnetd knows{better}") from None
