"""Links and addresses of the kernel, over rtnetlink."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from vnetd.backends import netlink
from vnetd.backends.base import Poke
from vnetd.backends.kernel import link_messages as messages
from vnetd.backends.kernel import traffic_control
from vnetd.backends.kernel.checksums import ChecksumFilters
from vnetd.backends.kernel.iproute import IPRouteThread
from vnetd.backends.kernel.link_events import LinkEvents
from vnetd.core.actions import Action
from vnetd.core.keep import checksums
from vnetd.core.keep.bridges import AddAddress, RemakeBridge, RenameBridge, SetBridge
from vnetd.core.keep.checksums import AddChecksumFilter
from vnetd.core.keep.networks import RemoveStrayBridge
from vnetd.core.keep.taps import PlugTap, SetTap, TapSettings
from vnetd.core.model import Address, IfName, Link, Observed, Source
from vnetd.errors import Outdated

_IPV4, _IPV6 = Path("/proc/sys/net/ipv4/conf"), Path("/proc/sys/net/ipv6/conf")
# linux/if.h and linux/neighbour.h
_IFF_UP, _NUD_NOARP, _NTF_MASTER = 1, 0x40, 0x04
# Links of others that come and go cut a reading short.
_MOST_READINGS = 5


class Links:
    source = Source.LINKS
    actions: tuple[type[Action], ...] = (
        SetBridge,
        RemakeBridge,
        RenameBridge,
        RemoveStrayBridge,
        AddAddress,
        AddChecksumFilter,
        PlugTap,
        SetTap,
    )

    def __init__(self, rules_are_known: Callable[[], bool]) -> None:
        """rules_are_known: nobody has written any since they were looked at."""
        self._rules_are_known = rules_are_known
        self._events = LinkEvents()
        self._rtnetlink = IPRouteThread("rtnetlink")
        self._asking = netlink.open_route()
        self._checksums = ChecksumFilters()

    async def observe(self, observed: Observed) -> Observed:
        self._events.begin_look(observed.links_of_interest)
        taps = observed.libvirt.taps if observed.libvirt else ()
        limited = any(tap.qdiscs for tap in taps)
        filtered = checksums.bridges(observed)
        links = await self._rtnetlink.call(
            lambda: self._read(filtered, with_qdiscs=limited or bool(filtered)), "links"
        )
        self._events.end_look(links)
        return replace(observed, links=links)

    async def apply(self, action: Action) -> None:
        match action:
            case SetBridge(bridge=bridge):
                await self._rtnetlink.call(lambda: self._set_bridge(action), bridge)
            case AddAddress(bridge=bridge, address=address):
                await self._rtnetlink.call(lambda: self._add_address(bridge, address), bridge)
            case AddChecksumFilter(bridge=bridge):
                if not self._rules_are_known():  # libvirt may put it in itself: there were two
                    raise Outdated("somebody has written rules since they were read")
                await self._rtnetlink.call(lambda: self._add_checksum_filter(bridge), bridge)
            case RemakeBridge(settings=SetBridge(bridge=bridge)):
                await self._rtnetlink.call(lambda: self._make_bridge(action), bridge)
            case RemoveStrayBridge(bridge=bridge):
                await self._rtnetlink.call(lambda: self._remove_bridge(bridge), bridge)
            case RenameBridge(bridge=bridge):
                await self._rtnetlink.call(lambda: self._rename(action), bridge)
            case PlugTap(tap=tap):
                await self._rtnetlink.call(lambda: self._plug(action), tap)
            case SetTap(tap=tap, settings=settings):
                await self._rtnetlink.call(lambda: self._set_tap(tap, settings), tap)
            case _:
                raise AssertionError(action)

    async def watch(self, poke: Poke) -> None:
        def look(reason: str) -> None:
            poke(self.source, Source.UPLINKS, Source.SYSCTLS, reason=reason)

        await self._events.watch(look)

    def _read(self, filtered: frozenset[IfName], *, with_qdiscs: bool) -> dict[IfName, Link]:
        """filtered: bridges that must have a filter for checksums."""
        for _ in range(_MOST_READINGS - 1):
            with suppress(BlockingIOError):
                return self._read_once(filtered, with_qdiscs=with_qdiscs)
        return self._read_once(filtered, with_qdiscs=with_qdiscs)

    def _read_once(self, filtered: frozenset[IfName], *, with_qdiscs: bool) -> dict[IfName, Link]:
        links = messages.Links(self._dump(messages.LINKS))
        vlans, macs, qdiscs, roots = {}, {}, {}, {}
        if links.has_vlan_filter():
            vlans = messages.vlans(self._dump(messages.VLANS))
            macs = messages.static_macs(self._dump(messages.FORWARDING_TABLE))
        if with_qdiscs:
            shown = self._dump(traffic_control.QDISCS)
            qdiscs, roots = traffic_control.kinds(shown), traffic_control.roots(shown)
        found = links.read(self._dump(messages.ADDRESSES), vlans, macs, qdiscs)
        for name in filtered & found.keys():
            found[name] = self._checksums.look(found[name], roots)
        return found

    def _dump(self, question: bytes) -> list[bytes]:
        return netlink.dump(self._asking, question)

    def _set_bridge(self, action: SetBridge) -> None:
        ipr, index = self._rtnetlink.ipr, self._rtnetlink.index(action.bridge)
        options: dict[str, object] = {}
        if action.stp is not None:
            options["br_stp_state"] = int(action.stp)
        if action.vlan_filtering is not None:
            options["br_vlan_filtering"] = int(action.vlan_filtering)
        if options:
            ipr.link("set", index=index, kind="bridge", **options)
        if action.delay is not None:
            # After STP, which raises it to the least that it takes.
            ipr.link("set", index=index, kind="bridge", br_forward_delay=round(action.delay * 100))
        values: dict[str, object] = {"state": "up"}
        if action.mac is not None:
            values["address"] = action.mac
        if action.mtu is not None:
            values["mtu"] = action.mtu
        with _telling_neighbours(action.bridge) if action.mac is not None else nullcontext():
            ipr.link("set", index=index, **values)

    def _make_bridge(self, action: RemakeBridge) -> None:
        """Up last, as libvirt does: no guest finds a bridge that is half made."""
        bridge = action.settings.bridge
        self._rtnetlink.add_bridge(bridge)
        # network/bridge_driver_linux.c: the host takes no address from its guests.
        unwanted = {"accept_ra": "0", "autoconf": "0"}
        if all(address.version == 4 for address in action.addresses):
            unwanted["disable_ipv6"] = "1"
        for name, value in unwanted.items():
            with suppress(FileNotFoundError):  # a kernel without IPv6
                (_IPV6 / bridge / name).write_text(value)
        for address in action.addresses:
            self._add_address(bridge, address)
        self._set_bridge(action.settings)

    def _rename(self, action: RenameBridge) -> None:
        """Kernels before 6.2 rename only what is down."""
        ipr, index = self._rtnetlink.ipr, self._rtnetlink.index(action.now)
        try:
            ipr.link("set", index=index, ifname=action.bridge)
        except NetlinkError as error:
            if error.code != errno.EBUSY:
                raise
            ipr.link("set", index=index, state="down")
            ipr.link("set", index=index, ifname=action.bridge)
        ipr.link("set", index=index, state="up")

    def _remove_bridge(self, bridge: IfName) -> None:
        ipr, index = self._rtnetlink.ipr, self._rtnetlink.index(bridge)
        if self._rtnetlink.ports(index):
            raise OSError(errno.EBUSY, "something is plugged into it")
        ipr.link("del", index=index)

    def _add_address(self, bridge: IfName, address: Address) -> None:
        values: dict[str, object] = {}
        if isinstance(address, IPv4Interface):
            values["broadcast"] = str(address.network.broadcast_address)  # as libvirt sets it
        try:
            self._rtnetlink.ipr.addr(
                "add",
                index=self._rtnetlink.index(bridge),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **values,
            )
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise

    def _add_checksum_filter(self, bridge: IfName) -> None:
        self._checksums.add(self._rtnetlink.index(bridge))

    def _plug(self, action: PlugTap) -> None:
        ipr, tap = self._rtnetlink.ipr, self._rtnetlink.index(action.tap)
        bridge = self._rtnetlink.index(action.bridge)
        settings = action.settings
        was_up = self._is_up(tap)
        if settings.mtu is not None:  # before: a smaller one would make the bridge's smaller
            ipr.link("set", index=tap, mtu=settings.mtu)
        if settings.of_port and was_up:
            # A port comes up un-isolated and in the bridge's own VLAN: hold it down until it is
            # not.
            ipr.link("set", index=tap, state="down")
        if action.pause_stp:
            # A port that joins without STP forwards at once, and goes on when STP is back: net/
            # bridge/br_stp.c, br_make_forwarding().
            ipr.link("set", index=bridge, kind="bridge", br_stp_state=0)
        try:
            ipr.link("set", index=tap, master=bridge)
            self._set_port(tap, settings)
            if was_up or settings.up:
                ipr.link("set", index=tap, state="up")
        finally:
            if action.pause_stp:
                ipr.link("set", index=bridge, kind="bridge", br_stp_state=1)

    def _set_tap(self, name: IfName, settings: TapSettings) -> None:
        ipr, tap = self._rtnetlink.ipr, self._rtnetlink.index(name)
        if settings.mtu is not None:
            ipr.link("set", index=tap, mtu=settings.mtu)
        self._set_port(tap, settings)
        if settings.up:
            ipr.link("set", index=tap, state="up")

    def _set_port(self, tap: int, settings: TapSettings) -> None:
        ipr = self._rtnetlink.ipr
        flags = {
            "isolated": settings.isolated,
            "learning": settings.learning,
            "unicast_flood": settings.unicast_flood,
        }
        if changed := {key: int(value) for key, value in flags.items() if value is not None}:
            ipr.brport("set", index=tap, **changed)
        for number in settings.unwanted_vlans:
            ipr.vlan_filter("del", index=tap, vlan_info={"vid": number, "flags": 0})
        for vlan in settings.vlans:
            info = {"vid": vlan.id, "flags": messages.vlan_flags(vlan)}
            ipr.vlan_filter("add", index=tap, vlan_info=info)
        for mac in settings.macs:
            # As libvirt adds it; it takes the place of what the bridge may have learned.
            ipr.fdb("replace", ifindex=tap, lladdr=mac, state=_NUD_NOARP, flags=_NTF_MASTER)

    def _is_up(self, index: int) -> bool:
        return bool(self._rtnetlink.link(index)["flags"] & _IFF_UP)


@contextmanager
def _telling_neighbours(name: IfName) -> Iterator[None]:
    """The kernel announces the addresses of a link whose MAC changes meanwhile: ip-sysctl,
    arp_notify and ndisc_notify. A guest that has learned the wrong MAC would believe in it for
    seconds, and a Linux guest hears no plain answer within a second of the last (net/ipv4/arp.c).
    """
    before = {}
    for path in (_IPV4 / name / "arp_notify", _IPV6 / name / "ndisc_notify"):
        with suppress(OSError):  # no IPv6, or only to be read: neighbours find out by themselves
            before[path] = path.read_text()
            path.write_text("1")
    try:
        yield
    finally:
        for path, value in before.items():
            with suppress(OSError):
                path.write_text(value)
