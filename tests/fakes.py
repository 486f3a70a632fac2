"""Stateful stand-ins for the systems behind the reconciler. They interpret actions as the real ones
do and refuse what those refuse; that the real ones do so is for the integration lane to show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_interface

from vnetd.backends.base import Poke
from vnetd.core.actions import Action
from vnetd.core.keep.bridges import AddAddress, RemakeBridge, SetBridge
from vnetd.core.keep.networks import (
    DefineNetwork,
    RemoveNetwork,
    RestartNetwork,
    SetAutostart,
    StartNetwork,
    UpdateDhcp,
)
from vnetd.core.keep.rules import RestoreRules
from vnetd.core.keep.taps import PlugTap
from vnetd.core.model import (
    Cause,
    Chain,
    Definition,
    IfName,
    Libvirt,
    Link,
    Mode,
    Network,
    Observed,
    Ruleset,
    Source,
    Tap,
    World,
)
from vnetd.core.model.link import Bridge, Port
from vnetd.core.packets.firewall import Firewall
from vnetd.core.policy import NetworkPolicy
from vnetd.core.record import Record
from vnetd.core.rules import iptables
from vnetd.core.status import Status
from vnetd.errors import BackendError


class FakeHost:
    """libvirt, links and firewall of one host, which change together as the real ones do."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.links: dict[str, Link] = {}
        self.chains: dict[Chain, list[str]] = {}
        self.applied: list[Action] = []
        self.fail: dict[type[Action], str | BackendError] = {}
        self.refused: list[Action] = []
        self.unreadable: dict[Source, str | OSError] = {}
        self.leaving: set[str] = set()
        self.taps: tuple[Tap, ...] = ()
        self.answers, self.starts = asyncio.Event(), asyncio.Event()
        """Unless set, libvirt holds back its answers, and what comes behind a network's bridge."""
        self.answers.set()
        self.starts.set()
        self.world = World.IPTABLES_NFT
        self.settled = True
        self.backends = [_Backend(self, source) for source in Source]

    def define(self, policy: NetworkPolicy) -> None:
        old = self.networks.get(policy.name)
        config = Definition(
            name=policy.name,
            mode=policy.mode,
            bridge=policy.bridge,
            addresses=policy.addresses,
            ranges=policy.ranges,
            hosts=policy.hosts,
            mtu=policy.mtu,
            mac=policy.mac,
            stp=policy.stp,
            made_by_vnetd=True,
        )
        live, autostart = (old.live, old.autostart) if old else (None, False)
        self.networks[policy.name] = Network(policy.name, config, live, autostart)

    def start(self, name: str) -> None:
        network = self.networks[name]
        live = network.config
        assert live is not None
        self.networks[name] = replace(network, live=live)
        self.make_bridge(live)
        for chain, rules in iptables.compose([]).items():
            self.chains.setdefault(chain, list(rules))
        for chain, rules in iptables.network_rules(live).items():
            self.chains[chain][:0] = rules

    def make_bridge(self, live: Definition) -> None:
        if live.mode.has_own_bridge and live.bridge:
            addresses = frozenset(live.addresses)
            mtu = live.mtu or 1500
            self.links[live.bridge] = Link(
                1,
                live.bridge,
                "bridge",
                live.mac or "",
                mtu,
                up=True,
                bridge=Bridge(),
                addresses=addresses,
            )

    def stop(self, name: str) -> None:
        network = self.networks[name]
        assert network.live is not None
        self.remove_rules(name)
        self.links.pop(network.live.bridge or "", None)
        self.networks[name] = replace(network, live=None)

    def remove_rules(self, name: str) -> None:
        live = self.networks[name].live
        assert live is not None
        for chain, rules in iptables.network_rules(live).items():
            for rule in rules:
                if rule in self.chains.get(chain, []):
                    self.chains[chain].remove(rule)

    def flush(self) -> None:
        for rules in self.chains.values():
            rules.clear()

    def apply(self, action: Action) -> None:
        if why := self.fail.get(type(action)):
            if isinstance(action, UpdateDhcp):
                self.remove_rules(action.network)  # libvirt begins so, and ends there if it fails
            self.refused.append(action)
            raise BackendError(why) if isinstance(why, str) else why
        self.applied.append(action)
        match action:
            case DefineNetwork(policy=policy):
                self.define(policy)
            case StartNetwork(network=name):
                self.start(name)
            case RestartNetwork(network=name):
                self.stop(name)
                self.start(name)
            case RemakeBridge(settings=SetBridge(bridge=bridge)):
                lives = [network.live for network in self.networks.values() if network.live]
                self.make_bridge(next(live for live in lives if live.bridge == bridge))
            case SetBridge(bridge=bridge):
                self.links[bridge] = replace(self.links[bridge], up=True)
            case PlugTap(tap=tap, bridge=bridge):
                self.links[tap] = replace(self.links[tap], master=bridge, port=Port())
            case SetAutostart(network=name, on=on):
                self.networks[name] = replace(self.networks[name], autostart=on)
            case RemoveNetwork(network=name):
                self.stop(name)
                del self.networks[name]
            case RestoreRules(chains=changes):
                for change in changes:
                    if change.new and change.chain in self.chains:
                        raise BackendError("Chain already exists.")
                    rules = self.chains.setdefault(change.chain, [])
                    for edit in change.edits:
                        if edit.position:
                            rules.insert(edit.position - 1, edit.rule)
                        else:
                            rules.remove(edit.rule)
            case _:
                raise AssertionError(action)


_ACTIONS: dict[Source, tuple[type[Action], ...]] = {
    Source.LIBVIRT: (
        DefineNetwork,
        RemoveNetwork,
        RestartNetwork,
        SetAutostart,
        StartNetwork,
        UpdateDhcp,
    ),
    Source.LINKS: (AddAddress, PlugTap, RemakeBridge, SetBridge),
    Source.FIREWALL: (RestoreRules,),
    Source.GUARD: (),
    Source.SYSCTLS: (),
    Source.DNSMASQ: (),
    Source.FILTERS: (),
    Source.UPLINKS: (),
    Source.ROUTES: (),
}


class _Backend:
    def __init__(self, host: FakeHost, source: Source) -> None:
        self._host = host
        self.source = source
        self.actions = _ACTIONS[source]
        self.looks = 0

    async def observe(self, observed: Observed) -> Observed:
        self.looks += 1
        if why := self._host.unreadable.get(self.source):
            raise BackendError(why) if isinstance(why, str) else why
        match self.source:
            case Source.LIBVIRT:
                await self._host.answers.wait()
                libvirt = Libvirt("9.0.0", 1, dict(self._host.networks), self._host.taps)
                return replace(observed, libvirt=libvirt)
            case Source.LINKS:
                links = {link.name: link for link in self._host.links.values()}
                return replace(observed, links=links)
            case Source.FIREWALL:
                chains = {chain: tuple(rules) for chain, rules in self._host.chains.items()}
                ruleset = Ruleset(self._host.world, chains, settled=self._host.settled)
                return replace(observed, firewall=ruleset)
            case Source.GUARD | Source.SYSCTLS | Source.DNSMASQ | Source.UPLINKS | Source.ROUTES:
                return observed
            case Source.FILTERS:
                return replace(observed, filters=Firewall())

    async def apply(self, action: Action) -> None:
        if isinstance(action, StartNetwork) and not self._host.starts.is_set():
            live = self._host.networks[action.network].config
            assert live is not None
            assert live.bridge is not None
            self._host.make_bridge(live)
            self._host.links[live.bridge] = replace(self._host.links[live.bridge], up=False)
            await self._host.starts.wait()
        self._host.apply(action)

    async def watch(self, poke: Poke) -> None:
        raise AssertionError("tests poke by themselves")


class Published:
    def __init__(self) -> None:
        self.statuses: list[Status] = []
        self.drift: list[tuple[str, tuple[str, ...], Cause | None]] = []
        self.records: list[Record] = []

    def publish(self, status: Status) -> None:
        self.statuses.append(status)

    def drift_detected(self, object_: str, drift: Sequence[str], cause: Cause | None) -> None:
        self.drift.append((object_, tuple(drift), cause))

    def recorded(self, record: Record) -> None:
        self.records.append(record)


def nat(name: str, number: int) -> NetworkPolicy:
    return NetworkPolicy(
        name,
        Mode.NAT,
        bridge=IfName(f"vb{name}"),
        addresses=(ip_interface(f"10.{number}.0.1/24"),),
    )
