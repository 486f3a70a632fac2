"""Links and addresses of the kernel, over rtnetlink."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Interface
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vnetd.backends import link_messages as messages
from vnetd.backends import netlink
from vnetd.backends.base import Poke
from vnetd.backends.link_events import LinkEvents
from vnetd.core.actions import Action
from vnetd.core.keep.bridges import AddAddress, SetBridge
from vnetd.core.keep.taps import PlugTap
from vnetd.core.model import Address, IfName, Link, Observed, Source
from vnetd.errors import BackendError

_T = TypeVar("_T")

# Links of others that come and go cut a reading short.
_MOST_READINGS = 5


class Links:
    source = Source.LINKS
    actions: tuple[type[Action], ...] = (SetBridge, AddAddress, PlugTap)

    def __init__(self) -> None:
        self._events = LinkEvents()
        # pyroute2's socket belongs to the thread that made it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rtnetlink")
        self._netlink: Any = None
        self._asking = netlink.open_route()

    async def observe(self, observed: Observed) -> Observed:
        self._events.begin_look(observed.links_of_interest)
        links = await self._call(self._read, "links")
        self._events.end_look(links)
        return replace(observed, links=links)

    async def apply(self, action: Action) -> None:
        match action:
            case SetBridge(bridge=bridge):
                await self._call(lambda: self._set_bridge(action), bridge)
            case AddAddress(bridge=bridge, address=address):
                await self._call(lambda: self._add_address(bridge, address), bridge)
            case PlugTap(tap=tap):
                await self._call(lambda: self._plug(action), tap)
            case _:
                raise AssertionError(action)

    async def watch(self, poke: Poke) -> None:
        def look(reason: str) -> None:
            poke(self.source, Source.UPLINKS, Source.SYSCTLS, reason=reason)

        await self._events.watch(look)

    async def _call(self, work: Callable[[], _T], what: str) -> _T:
        """Raises BackendError where the kernel refuses."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except (OSError, NetlinkError) as error:
            raise BackendError(f"{what}: {error}") from error

    def _open(self) -> Any:
        if self._netlink is None:
            self._netlink = IPRoute()
        return self._netlink

    def _read(self) -> dict[IfName, Link]:
        for _ in range(_MOST_READINGS - 1):
            with suppress(BlockingIOError):
                return self._read_once()
        return self._read_once()

    def _read_once(self) -> dict[IfName, Link]:
        links = messages.Links(self._dump(messages.LINKS))
        vlans, macs = {}, {}
        if links.has_vlan_filter():
            vlans = messages.vlans(self._dump(messages.VLANS))
            macs = messages.static_macs(self._dump(messages.FORWARDING_TABLE))
        return links.read(self._dump(messages.ADDRESSES), vlans, macs)

    def _dump(self, question: bytes) -> list[bytes]:
        return netlink.dump(self._asking, question)

    def _index(self, name: IfName) -> int:
        """Asked anew each time: a link made again under the same name has another index."""
        found = self._open().link_lookup(ifname=name)
        if not found:
            raise OSError(errno.ENODEV, "no such link")
        return int(found[0])

    def _set_bridge(self, action: SetBridge) -> None:
        ipr, index = self._open(), self._index(action.bridge)
        if action.stp is not None:
            ipr.link("set", index=index, kind="bridge", br_stp_state=int(action.stp))
        values: dict[str, object] = {"state": "up"}
        if action.mac is not None:
            values["address"] = action.mac
        if action.mtu is not None:
            values["mtu"] = action.mtu
        ipr.link("set", index=index, **values)

    def _add_address(self, bridge: IfName, address: Address) -> None:
        values: dict[str, object] = {}
        if isinstance(address, IPv4Interface):
            values["broadcast"] = str(address.network.broadcast_address)  # as libvirt sets it
        try:
            self._open().addr(
                "add",
                index=self._index(bridge),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **values,
            )
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise

    def _plug(self, action: PlugTap) -> None:
        ipr, tap = self._open(), self._index(action.tap)
        bridge = self._index(action.bridge)
        if action.isolated:
            # A port comes up un-isolated: hold it down until the flag is on it.
            ipr.link("set", index=tap, state="down")
        if action.pause_stp:
            # A port that joins without STP forwards at once, and goes on when STP is back: net/
            # bridge/br_stp.c, br_make_forwarding().
            ipr.link("set", index=bridge, kind="bridge", br_stp_state=0)
        try:
            ipr.link("set", index=tap, master=bridge)
            if action.isolated:
                ipr.brport("set", index=tap, isolated=1)
            ipr.link("set", index=tap, state="up")
        finally:
            if action.pause_stp:
                ipr.link("set", index=bridge, kind="bridge", br_stp_state=1)
