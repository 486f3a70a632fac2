"""[networks.NAME]: libvirt's networks as a policy wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from vnetd.core.model import (
    Address,
    DhcpHost,
    DhcpRange,
    HostAddress,
    IfName,
    Mode,
    StaticRoute,
    Subnet,
)
from vnetd.core.policy import bridges, forwards, routing, values
from vnetd.core.policy.forwards import Forward
from vnetd.core.policy.routing import Announce
from vnetd.core.policy.toml_table import Table, bad_name

SUPPORTED_MODES = (Mode.NAT, Mode.ROUTE, Mode.ISOLATED, Mode.OPEN, Mode.BRIDGE)


class Firewall(StrEnum):
    """Whose rules a network lives by."""

    LIBVIRT = "libvirt"
    VNETD = "vnetd"


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """One [networks.NAME]. None: the policy does not say, so it cannot drift."""

    name: str
    mode: Mode
    bridge: IfName | None = None
    autostart: bool = True
    addresses: tuple[Address, ...] = ()
    ranges: tuple[DhcpRange, ...] = ()
    hosts: tuple[DhcpHost, ...] = ()
    domain: str | None = None
    mac: str | None = None
    mtu: int | None = None
    stp: bool | None = None
    uplink: str | None = None
    guard: bool = True
    firewall: Firewall = Firewall.LIBVIRT
    forwards: tuple[Forward, ...] = ()
    routes: tuple[StaticRoute, ...] | None = None
    announce: frozenset[Announce] = frozenset()
    overlaps: tuple[Subnet, ...] = ()
    """What others have there and the network may overlap."""
    waiting: tuple[DhcpHost, ...] = ()
    """Reservations for domains that have no MAC on the network, or are not defined."""

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """All that it has or routes to."""
        own = [address.network for address in self.addresses]
        return (*own, *(route.to for route in self.routes or ()))

    @property
    def libvirts_mode(self) -> Mode:
        """In open mode libvirt makes no rules."""
        return Mode.OPEN if self.firewall is Firewall.VNETD else self.mode


def read(sections: Table) -> dict[str, NetworkPolicy]:
    found = {}
    for name, section in sections.each_table("write a table: [networks.NAME]"):
        network = _network(name, section)
        if network is not None:
            found[name] = network
    _check_together(found, sections)
    return found


def _network(name: str, section: Table) -> NetworkPolicy | None:
    if problem := bad_name(name):
        section.wrong(None, problem, "take a name of letters, digits, '-', '_' and '.'")
    mode = section.enum("mode", SUPPORTED_MODES, None, elsewhere=Mode)
    dhcp = section.table("dhcp", "write dhcp.ranges and dhcp.hosts")
    hosts = (_host(entry) for entry in dhcp.tables("hosts", "{ mac = …, name = …, address = … }"))
    firewall = section.enum("firewall", list(Firewall), Firewall.LIBVIRT)
    addresses = section.list("addresses", values.address, '"ADDRESS/PREFIX"')
    network = NetworkPolicy(
        name=name,
        mode=mode or Mode.ISOLATED,
        bridge=section.parsed(
            "bridge", values.ifname, "write an interface name of at most 15 letters"
        ),
        autostart=section.get("autostart", bool, "write true or false") is not False,
        addresses=addresses,
        ranges=dhcp.list("ranges", values.dhcp_range, '"FIRST-LAST"'),
        hosts=tuple(host for host in hosts if host is not None),
        domain=section.parsed("domain", values.domain, 'write a DNS name such as "lab.example"'),
        mac=section.parsed(
            "mac", values.mac, 'write a unicast address such as "52:54:00:12:34:56"'
        ),
        mtu=section.get("mtu", int, "write a number of bytes from 68 to 65535"),
        stp=section.get("stp", bool, "write true or false"),
        uplink=bridges.network_uplink(section, mode),
        guard=section.get("guard", bool, "write true or false") is not False,
        firewall=firewall or Firewall.LIBVIRT,
        forwards=forwards.read(section, addresses),
        routes=routing.routes(section, addresses),
        announce=routing.announce(section),
        overlaps=routing.overlaps(section),
    )
    dhcp.close()
    section.close()
    if mode is None:
        return None
    _check_network(network, section, dhcp)
    return network


def _host(entry: Table) -> DhcpHost | None:
    host_address = entry.parsed(
        "address", values.host_address, 'write an address such as "10.77.0.20"'
    )
    mac = entry.parsed("mac", values.mac, 'write a unicast address such as "52:54:00:12:34:56"')
    duid = entry.parsed("id", values.duid, 'write a DUID such as "0:1:0:1:18:aa:62:fe:0:16:3e:44"')
    name = entry.parsed("name", values.host_name, 'write a host name such as "web"')
    domain = entry.get("domain", str, "write the name of a libvirt domain")
    entry.close()
    if host_address is None:
        if "address" not in entry:
            entry.wrong("address", "is missing", 'write an address such as "10.77.0.20"')
        return None
    if "mac" in entry and "domain" in entry:
        entry.wrong("domain", "says whose it is a second time", "keep domain or mac")
    if host_address.version == 4 and "mac" not in entry and "domain" not in entry:
        right = 'an IPv4 reservation is made by MAC address, or by domain = "…"'
        entry.wrong("mac", "is missing", right)
    for key in ("mac", "domain"):
        if host_address.version == 6 and key in entry:
            entry.wrong(key, "cannot key an IPv6 reservation", 'write id = "DUID" or name = "…"')
    return DhcpHost(address=host_address, mac=mac, id=duid, name=name, domain=domain)


def _check_firewall(network: NetworkPolicy, section: Table) -> None:
    own = network.firewall is Firewall.VNETD
    if own and network.mode is not Mode.NAT:
        right = "leave it out: libvirt's rules are vnetd's only with mode = \"nat\""
        section.wrong("firewall", f'"vnetd" has no meaning with mode = "{network.mode}"', right)
    if "guard" in section and not network.mode.has_guard:
        right = "leave it out: there is nothing to guard"
        section.wrong("guard", f'has no meaning with mode = "{network.mode}"', right)
    if own and not network.guard:
        section.wrong("guard", 'cannot be off with firewall = "vnetd"', "leave it out")
    if network.forwards and not own:
        right = 'write firewall = "vnetd": libvirt\'s own rules would reject it'
        section.wrong("forwards", "has no effect beside libvirt's firewall", right)


def _check_network(network: NetworkPolicy, section: Table, dhcp: Table) -> None:
    """What can only be judged with the whole network at hand."""
    mode = network.mode
    _check_firewall(network, section)
    routing.check(section, mode, network.addresses, network.announce)
    if mode is Mode.BRIDGE:
        if "bridge" not in section:
            section.wrong("bridge", "is missing", "name the host bridge that guests are put on")
        for key in ("addresses", "dhcp", "domain", "mac", "mtu", "stp"):
            if key in section:
                right = "the bridge belongs to the host: set it there"
                section.wrong(key, 'has no meaning with mode = "bridge"', right)
        return
    if mode is not Mode.ISOLATED and "addresses" not in section:
        right = 'write addresses = ["ADDRESS/PREFIX"]'
        section.wrong("addresses", f'is missing: mode = "{mode}" needs one', right)
    if network.mtu is not None:
        least = 1280 if any(address.version == 6 for address in network.addresses) else 68
        if not least <= network.mtu <= 65535:
            why = " (IPv6 needs 1280, RFC 8200)" if least == 1280 else ""
            right = f"write a number of bytes from {least} to 65535{why}"
            section.wrong("mtu", f"{network.mtu} is out of range", right)
    _check_dhcp(network, dhcp)


def _check_dhcp(network: NetworkPolicy, dhcp: Table) -> None:
    served: set[Address] = set()
    own = {address.ip for address in network.addresses}

    def subnet(address: HostAddress) -> Address | None:
        found = (candidate for candidate in network.addresses if address in candidate.network)
        return next(found, None)

    known = ", ".join(str(address.network) for address in network.addresses) or "addresses"
    for at, item in enumerate(network.ranges):
        list_of_ranges = dhcp.at("ranges")
        home = subnet(item.start)
        if home is None or item.end not in home.network:
            right = f"take both ends from one of {known}"
            list_of_ranges.wrong(at, f'"{item}" is not in a subnet of the network', right)
            continue
        served.add(home)
        inside = [ip for ip in own if item.start.version == ip.version and values.within(ip, item)]
        if inside:
            right = f"leave {inside[0]} out of the range: it is the host's own"
            list_of_ranges.wrong(at, f'"{item}" contains the address {inside[0]}', right)
        edges = values.edges(home)
        if any(values.within(edge, item) for edge in edges):
            right = f"leave {edges[0]} and {edges[-1]} out of it"
            list_of_ranges.wrong(at, f'"{item}" contains network or broadcast address', right)
        for before in network.ranges[:at]:
            if before.start.version == item.start.version and values.overlap(item, before):
                list_of_ranges.wrong(at, f'"{item}" overlaps "{before}"', "join or separate them")
    for at, host in enumerate(network.hosts):
        list_of_hosts = dhcp.at("hosts")
        home = subnet(host.address)
        if home is None:
            right = f"take an address from one of {known}"
            list_of_hosts.wrong(at, f'"{host.address}" is not in a subnet of the network', right)
            continue
        served.add(home)
        if host.address in own:
            list_of_hosts.wrong(at, f'"{host.address}" is the host\'s own', "take another address")
        for other in network.hosts[:at]:
            twice = [str(key) for key in _host_keys(host) if key in _host_keys(other)]
            if twice:
                shown = ", ".join(f'"{key}"' for key in twice)
                list_of_hosts.wrong(at, f"{shown} is reserved twice", "keep one of the two")
    for version in (4, 6):
        if len(homes := {home for home in served if home.version == version}) > 1:
            dhcp.wrong(
                None,
                f"serves {len(homes)} IPv{version} subnets",
                f"libvirt serves one IPv{version} subnet a network: keep one",
            )


def _host_keys(host: DhcpHost) -> list[object]:
    return [key for key in (host.address, host.mac, host.id, host.domain) if key is not None]


def _check_together(networks: Mapping[str, NetworkPolicy], sections: Table) -> None:
    for one, two in combinations(networks.values(), 2):
        both_own = one.mode.has_own_bridge and two.mode.has_own_bridge
        if (
            one.bridge is not None
            and one.bridge == two.bridge
            and (both_own or one.mode is not two.mode)
        ):
            wrong = f'"{two.bridge}" is the bridge of networks.{one.name} already'
            sections.at(two.name).wrong("bridge", wrong, "give each network its own bridge")
        if one.mac is not None and one.mac == two.mac:
            wrong = f'"{two.mac}" is the MAC address of networks.{one.name} already'
            sections.at(two.name).wrong("mac", wrong, "give each network its own")
    ports = [(network, item) for network in networks.values() for item in network.forwards]
    for (one, before), (two, after) in combinations(ports, 2):
        low, high = max(before.ports[0], after.ports[0]), min(before.ports[1], after.ports[1])
        shared = before.families & after.families and before.protocol == after.protocol
        if shared and low <= high and not before.sources:
            wrong = f"{after.protocol} port {low} is forwarded by networks.{one.name} already"
            sections.at(two.name).wrong("forwards", wrong, "forward each port once")
    routing.check_together(
        sections,
        [(item.name, item.addresses, item.routes or ()) for item in networks.values()],
    )
