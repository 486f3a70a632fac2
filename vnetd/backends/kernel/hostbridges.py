"""Bridges of the host and their uplinks, over rtnetlink."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from vnetd.backends import files, netlink
from vnetd.backends.base import Poke
from vnetd.backends.kernel import cards, managers, uplinks
from vnetd.backends.kernel import rtnetlink as rt
from vnetd.backends.kernel.iproute import IPRouteThread
from vnetd.backends.kernel.link_messages import vlan_flags
from vnetd.backends.kernel.uplinks import Notes, Stage
from vnetd.core.actions import Action
from vnetd.core.keep.hostbridges import MARK, AddRoutes, MakeBridge, RemoveBridge, SetHostBridge
from vnetd.core.keep.uplinks import ReleaseUplink, SetPort, TakeUplink
from vnetd.core.model import (
    IfName,
    Link,
    Observed,
    Route,
    Source,
    Uplinks,
)
from vnetd.core.uplinks import resolve
from vnetd.errors import BackendError

log = logging.getLogger(__name__)

_CARRIER_SECONDS = 0.3
_NAMES_SECONDS = 1.0
# Times are in 1/100 s.
_ATTRIBUTES = {
    "stp": ("br_stp_state", 1),
    "forward_delay": ("br_forward_delay", 100),
    "hello_time": ("br_hello_time", 100),
    "max_age": ("br_max_age", 100),
    "priority": ("br_priority", 1),
    "vlan_filtering": ("br_vlan_filtering", 1),
    "group_fwd_mask": ("br_group_fwd_mask", 1),
    "multicast_snooping": ("br_mcast_snooping", 1),
}
_KERNEL_OPTIONS = {
    "vlan_filtering": "CONFIG_BRIDGE_VLAN_FILTERING",
    "multicast_snooping": "CONFIG_BRIDGE_IGMP_SNOOPING",
}


class HostBridges:
    source = Source.UPLINKS
    actions: tuple[type[Action], ...] = (
        RemoveBridge,
        ReleaseUplink,
        MakeBridge,
        SetHostBridge,
        TakeUplink,
        SetPort,
        AddRoutes,
    )

    def __init__(self, runtime: Path) -> None:
        self._notes = Notes(runtime / "uplinks")
        self._managers = managers.Managers()
        self._events = netlink.open_route_events()
        self._rtnetlink = IPRouteThread("hostbridges")
        self._kernel = rt.Rtnetlink()
        self._indexes: frozenset[int] = frozenset()
        self._ours: frozenset[str] = frozenset()
        """Indexes of the links that nobody else must lead."""
        self._awaited: frozenset[str] = frozenset()
        self._awaits = asyncio.Event()
        # Before anything else: the host may be cut off.
        self._rtnetlink.submit(self._put_back)

    async def observe(self, observed: Observed) -> Observed:
        links = observed.links
        if links is None:
            return observed
        found = await self._rtnetlink.call(lambda: self._read(observed, links), "uplinks")
        (self._awaits.set if self._awaited else self._awaits.clear)()
        ours = _ours(observed, links, found.pci)
        self._ours = frozenset(str(index) for index in ours.values() if index is not None)
        owners = await self._managers.owners(ours)
        return replace(observed, uplinks=replace(found, owners=owners))

    async def apply(self, action: Action) -> None:
        match action:
            case MakeBridge(policy=policy):
                await self._rtnetlink.call(lambda: self._make(action), policy.name)
            case SetHostBridge(bridge=bridge):
                await self._rtnetlink.call(lambda: self._set(bridge, dict(action.values)), bridge)
            case TakeUplink(uplink=uplink):
                await self._rtnetlink.call(lambda: self._take(action), uplink)
            case ReleaseUplink(policy=policy, uplink=uplink):
                stay = policy.addresses
                await self._rtnetlink.call(lambda: self._release(policy.name, uplink, stay), uplink)
            case SetPort(uplink=uplink):
                await self._rtnetlink.call(lambda: self._set_port(action), uplink)
            case AddRoutes(bridge=bridge):
                await self._rtnetlink.call(lambda: self._add_routes(action), bridge)
            case RemoveBridge(bridge=bridge):
                await self._rtnetlink.call(lambda: self._remove(action), bridge)
            case _:
                raise AssertionError(action)

    async def watch(self, poke: Poke) -> None:
        def on_data(data: bytes | None) -> None:
            if data is None:
                poke(self.source, reason="route events were lost")
            elif any(self._indexes & rt.hops(body) for _, body in netlink.messages(data)):
                poke(self.source, reason="routes changed")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(netlink.listen(self._events, on_data))
            tasks.create_task(self._await_names(poke))
            tasks.create_task(self._await_managers(poke))

    async def _await_names(self, poke: Poke) -> None:
        """The kernel tells nobody of an altname that a link gets while it is down."""
        while True:
            await self._awaits.wait()
            await asyncio.sleep(_NAMES_SECONDS)
            if await self._rtnetlink.call(self._has_come, "uplinks"):
                poke(Source.LINKS, self.source, reason="an uplink has come")

    async def _await_managers(self, poke: Poke) -> None:
        """A directory that is not there yet is waited for in the one that it will be in."""
        while True:
            there = {
                next(p for p in (path, *path.parents) if p.is_dir()) for path in managers.STATE
            }
            watch = files.DirectoryWatch(there, created=True, matters=lambda x: x in self._ours)
            try:
                await watch.changed()
            finally:
                watch.close()
            poke(self.source, reason="another tool has taken or left a link")

    # -- in the thread

    def _read(self, observed: Observed, links: Mapping[IfName, Link]) -> Uplinks:
        notes = self._notes.all()
        notes = [note for note in notes if self._counts(note, observed, links)]
        if not observed.asked.bridges and not observed.asked.uplinks:
            self._awaited = frozenset()
            return Uplinks(taken=_taken(notes))
        devices = [name for name, link in links.items() if not link.kind and name != "lo"]
        pci = {name: path for name in devices if (path := _pci_path(links[name]))}
        of_bridges = [text for texts in observed.asked.bridges.values() for text in texts]
        named = {*of_bridges, *observed.asked.uplinks}
        resolved = {text: resolve(text, links, pci) for text in named}
        found = [link for text in of_bridges if (link := resolved[text]) is not None]
        self._awaited = frozenset(text for text, link in resolved.items() if link is None)
        addresses = self._kernel.dump(rt.GETADDR, rt.FAMILIES[0])
        bridges = {links[x].index: x for x in map(IfName, observed.asked.bridges) if x in links}
        self._indexes = frozenset(bridges)
        return Uplinks(
            asked=observed.asked.bridges,
            pci=pci,
            wireless=frozenset(name for name in devices if cards.is_wireless(name)),
            leased=frozenset(
                link.name
                for link in found
                if any(map(rt.is_leased, rt.addresses_of(addresses, link.index)))
            ),
            routes=self._routes(bridges),
            taken=_taken(notes),
            refused=tuple(note.refusal() for note in notes if note.stage is Stage.REFUSED),
        )

    def _has_come(self) -> bool:
        return any(map(self._kernel.has_link, self._awaited))

    def _counts(self, note: uplinks.Note, observed: Observed, links: Mapping[IfName, Link]) -> bool:
        """Nothing is left to know of a bridge that is gone and that the policy asks for no more."""
        asked = observed.asked
        if note.bridge in asked.bridges or note.bridge in links:
            return True
        if asked.bridges or asked.networks:  # else the policy may only have lost its text
            self._notes.drop(note.uplink)
        return False

    def _routes(self, bridges: Mapping[int, IfName]) -> dict[IfName, frozenset[Route]]:
        found: defaultdict[IfName, set[Route]] = defaultdict(set)
        for body in self._kernel.dump(rt.GETROUTE, *rt.FAMILIES):
            for index in rt.hops(body) & bridges.keys():
                found[bridges[index]].add(rt.route(body))
        return {name: frozenset(routes) for name, routes in found.items()}

    def _make(self, action: MakeBridge) -> None:
        want = action.policy
        mac = {} if action.mac is None else {"address": action.mac}
        self._rtnetlink.add_bridge(want.name, **mac)
        index = self._rtnetlink.index(want.name)
        self._rtnetlink.ipr.link("set", index=index, IFLA_IFALIAS=MARK)
        values = {key: getattr(want, key) for key in ("mtu", *_ATTRIBUTES)}
        self._set(want.name, {k: _shown(v) for k, v in values.items() if v is not None})

    def _set(self, bridge: IfName, values: Mapping[str, str]) -> None:
        """STP off comes before its times, on after them: with STP on some are out of range."""
        ipr, index = self._rtnetlink.ipr, self._rtnetlink.index(bridge)
        plain: dict[str, object] = {"state": "up"}
        if "mac" in values:
            plain["address"] = values["mac"]
        if "mtu" in values:
            plain["mtu"] = int(values["mtu"])
        ipr.link("set", index=index, **plain)
        off = values.get("stp") == "off"
        for key in sorted(_ATTRIBUTES, key=lambda key: (key == "stp") is not off):
            if key not in values:
                continue
            attribute, unit = _ATTRIBUTES[key]
            number = {"on": 1, "off": 0}.get(values[key])
            number = int(values[key]) * unit if number is None else number
            try:
                ipr.link("set", index=index, kind="bridge", **{attribute: number})
            except NetlinkError as error:
                if error.code == errno.EOPNOTSUPP:
                    option = _KERNEL_OPTIONS.get(key, "that option")
                    wrong = f"{key} = {values[key]}: this kernel lacks it ({option})"
                    raise BackendError(f"{bridge}: {wrong}; leave the key out") from error
                raise

    def _take(self, action: TakeUplink) -> None:
        ipr, want, name = self._rtnetlink.ipr, action.policy, action.uplink
        bridge, index = self._rtnetlink.index(want.name), self._rtnetlink.index(name)
        note, neighbours = uplinks.look(self._kernel, want.name, name, index, repr(want))
        plugged = self._rtnetlink.link(index).get_attr("IFLA_MASTER") == bridge
        for each in (bridge, index):
            ipr.link("set", index=each, state="up")
        witnesses = [] if plugged else uplinks.witnesses(self._kernel, note, neighbours)
        old = self._notes.of(name)
        uplinks.copy_sysctls(name, want.name)
        self._notes.write(note)
        if action.pause_stp:
            ipr.link("set", index=bridge, kind="bridge", br_stp_state=0)
        try:
            uplinks.move(self._kernel, note, bridge, lambda: self._wait_for_carrier(bridge))
            if silent := uplinks.ask(self._kernel, bridge, witnesses) if witnesses else []:
                who = ", ".join(str(host) for host in silent)
                raise BackendError(f"{who} did not answer through bridge {want.name}")
        except (OSError, BackendError) as error:
            why = f"uplink {name} was put back: {error}"
            self._undo(replace(note, why=why))
            raise BackendError(why) from error
        finally:
            if action.pause_stp and (still := self._rtnetlink.find(want.name)) is not None:
                ipr.link("set", index=still, kind="bridge", br_stp_state=1)
        if want.mtu is not None:  # the kernel sets it to the smallest of the ports'
            ipr.link("set", index=bridge, mtu=want.mtu)
        self._notes.write(replace(uplinks.merged(old, note), stage=Stage.TAKEN))

    def _wait_for_carrier(self, bridge: int) -> None:
        """It sends nothing before; a cable may be out, so not for long."""
        deadline = time.monotonic() + _CARRIER_SECONDS
        while time.monotonic() < deadline:
            if self._rtnetlink.link(bridge).get_attr("IFLA_OPERSTATE") == "UP":
                return
            time.sleep(0.002)

    def _put_back(self) -> None:
        """What a vnetd before this one was killed over."""
        for note in self._notes.all():
            if note.stage is Stage.MOVING:
                why = f"uplink {note.uplink} was put back: vnetd ended while it took it in"
                log.warning("bridge/%s: %s", note.bridge, why)
                try:
                    self._undo(replace(note, why=why))
                except (OSError, NetlinkError) as error:
                    log.error("bridge/%s: %s", note.bridge, error)

    def _undo(self, note: uplinks.Note) -> None:
        uplink, bridge = self._rtnetlink.find(note.uplink), self._rtnetlink.find(note.bridge)
        if uplink is not None:
            uplinks.undo(self._kernel, note, uplink, bridge)
        self._delete_if_idle(note.bridge)
        self._notes.write(replace(note, stage=Stage.REFUSED))

    def _release(self, bridge: IfName, uplink: IfName, stay: Iterable[Any]) -> None:
        note, index = self._notes.of(uplink), self._rtnetlink.find(uplink)
        if note is not None and index is not None:
            uplinks.undo(self._kernel, note, index, self._rtnetlink.find(bridge), stay)
        self._notes.drop(uplink)

    def _remove(self, action: RemoveBridge) -> None:
        for uplink in action.uplinks:
            self._release(action.bridge, uplink, ())
        self._delete_if_idle(action.bridge)

    def _delete_if_idle(self, bridge: IfName) -> None:
        """One that vnetd made, and that nothing is plugged into."""
        ipr, index = self._rtnetlink.ipr, self._rtnetlink.find(bridge)
        if index is None:
            return
        made = self._rtnetlink.link(index).get_attr("IFLA_IFALIAS") == MARK
        if made and not self._rtnetlink.ports(index):
            ipr.link("del", index=index)

    def _set_port(self, action: SetPort) -> None:
        ipr, index, port = self._rtnetlink.ipr, self._rtnetlink.index(action.uplink), action.port
        if action.mtu is not None:
            ipr.link("set", index=index, mtu=action.mtu)
        if port.isolated is not None:
            ipr.brport("set", index=index, isolated=int(port.isolated))
        for vlan in sorted(port.vlans or ()):
            info = {"vid": vlan.id, "flags": vlan_flags(vlan)}
            ipr.vlan_filter("add", index=index, vlan_info=info)
        for number in action.unwanted:
            ipr.vlan_filter("del", index=index, vlan_info={"vid": number, "flags": 0})
        ipr.link("set", index=index, state="up")

    def _add_routes(self, action: AddRoutes) -> None:
        """As the uplink had them, where it brought them. A route to the same place by another
        gateway goes, once this one is there: the first of two would be the one in use.
        """
        bridge = self._rtnetlink.index(action.bridge)
        notes = [note for note in self._notes.all() if note.bridge == action.bridge]
        brought = {
            rt.route(body): rt.route_at(body, note.index, bridge)
            for note in notes
            for body in map(bytes.fromhex, note.routes)
        }
        have = rt.routes_of(self._kernel.dump(rt.GETROUTE, *rt.FAMILIES), bridge)
        bodies = [brought.get(x) or rt.route_over(bridge, x) for x in action.routes]
        ways = {(x.destination, x.table, x.metric) for x in action.routes}
        requests = [rt.Request(rt.NEWROUTE, rt.CREATE | rt.APPEND, body) for body in bodies]
        for body in have:
            route = rt.route(body)
            way = (route.destination, route.table, route.metric)
            if way in ways and route not in action.routes:
                requests.append(rt.Request(rt.DELROUTE, 0, rt.route_at(body, bridge, bridge)))
        rt.check(requests, self._kernel.run(requests), errno.EEXIST, errno.ESRCH)


def _ours(
    observed: Observed, links: Mapping[IfName, Link], pci: Mapping[IfName, str]
) -> dict[IfName, int | None]:
    """What nobody else must lead, by index: bridges of the host, whether they are there or not,
    their uplinks, and libvirt's own bridges.
    """
    asked = observed.asked.bridges
    found = [resolve(text, links, pci) for texts in asked.values() for text in texts]
    uplinks = [link.name for link in found if link is not None]
    networks = observed.libvirt.networks.values() if observed.libvirt else ()
    own = [live.bridge for x in networks if (live := x.live) and live.mode.has_own_bridge]
    names = {*map(IfName, asked), *uplinks, *filter(None, own)}
    return {name: links[name].index if name in links else None for name in names}


def _taken(notes: Iterable[uplinks.Note]) -> tuple[Any, ...]:
    return tuple(note.taken() for note in notes if note.stage is Stage.TAKEN)


def _shown(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _pci_path(link: Link) -> str:
    if link.parent.startswith("pci "):
        return f"pci-{link.parent.removeprefix('pci ')}"
    return cards.pci_path(link.name) if link.parent else ""
