"""Links and addresses of the kernel, over rtnetlink."""

from __future__ import annotations

import asyncio
import errno
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Interface, ip_interface
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vnetd.backends import netlink
from vnetd.backends.base import Poke
from vnetd.core.actions import Action
from vnetd.core.keep.bridges import AddAddress, SetBridge
from vnetd.core.keep.taps import PlugTap
from vnetd.core.model import Address, IfName, Link, Observed, PortState, Source
from vnetd.errors import BackendError

_T = TypeVar("_T")
_IFF_UP = 1


class Links:
    source = Source.LINKS
    actions: tuple[type[Action], ...] = (SetBridge, AddAddress, PlugTap)

    def __init__(self) -> None:
        self._events = netlink.open_link_events()
        # pyroute2's socket belongs to the thread that made it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rtnetlink")
        self._netlink: Any = None

    async def observe(self, observed: Observed) -> Observed:
        return replace(observed, links=await self._call(self._read, "links"))

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
        def on_data(data: bytes | None) -> None:
            lost = data is None
            poke(self.source, reason="link events were lost" if lost else "links changed")

        await netlink.listen(self._events, on_data)

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
        ipr = self._open()
        messages = list(ipr.get_links())
        names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in messages}
        addresses: defaultdict[int, set[Address]] = defaultdict(set)
        for message in ipr.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            addresses[message["index"]].add(ip_interface(f"{text}/{message['prefixlen']}"))
        links = (
            _link(message, names, frozenset(addresses[message["index"]])) for message in messages
        )
        return {link.name: link for link in links}

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


def _link(message: Any, names: dict[int, str], addresses: frozenset[Address]) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    stp = data.get_attr("IFLA_BR_STP_STATE") if kind == "bridge" and data else None
    master = names.get(message.get_attr("IFLA_MASTER") or 0)
    # Of masters that it does not know pyroute2 gives the port's data as bytes.
    of_bridge = port if hasattr(port, "get_attr") else None
    isolated = of_bridge.get_attr("IFLA_BRPORT_ISOLATED") if of_bridge else None
    state = of_bridge.get_attr("IFLA_BRPORT_STATE") if of_bridge else None
    return Link(
        index=message["index"],
        name=IfName(names[message["index"]]),
        kind=kind,
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & _IFF_UP),
        master=IfName(master) if master else None,
        stp=None if stp is None else bool(stp),
        isolated=bool(isolated),
        port_state=None if state is None else PortState(state),
        addresses=addresses,
    )
