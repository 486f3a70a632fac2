"""libvirt's networks as their XML says, and what libvirt knows beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vnetd.core.basics import Address, Family, HostAddress, IfName
from vnetd.core.model.route import StaticRoute
from vnetd.core.model.tap import Tap


class Mode(StrEnum):
    """libvirt's forward modes; a network without <forward> is isolated."""

    NAT = "nat"
    ROUTE = "route"
    ISOLATED = "isolated"
    OPEN = "open"
    BRIDGE = "bridge"
    PRIVATE = "private"
    VEPA = "vepa"
    PASSTHROUGH = "passthrough"
    HOSTDEV = "hostdev"

    @property
    def has_own_bridge(self) -> bool:
        """libvirt makes and destroys the bridge together with the network."""
        return self in (Mode.NAT, Mode.ROUTE, Mode.ISOLATED, Mode.OPEN)

    @property
    def has_rules(self) -> bool:
        """libvirt installs firewall rules for the network."""
        return self in (Mode.NAT, Mode.ROUTE, Mode.ISOLATED)

    @property
    def is_forwarded(self) -> bool:
        """The host is its guests' way out."""
        return self in (Mode.NAT, Mode.ROUTE, Mode.OPEN)

    @property
    def is_routed(self) -> bool:
        """And whoever is outside sees the guests' own addresses."""
        return self in (Mode.ROUTE, Mode.OPEN)

    @property
    def has_guard(self) -> bool:
        """A flush opens or cuts it, so there is something to guard."""
        return self in (Mode.NAT, Mode.ISOLATED)


@dataclass(frozen=True, slots=True)
class DhcpRange:
    start: HostAddress
    end: HostAddress

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class DhcpHost:
    """A reservation. IPv4 is keyed by mac, IPv6 by id (a DUID) or name, as dnsmasq does. domain:
    for the MAC that this one has on the network; libvirt itself knows no such thing.
    """

    address: HostAddress
    mac: str | None = None
    id: str | None = None
    name: str | None = None
    domain: str | None = None

    def __str__(self) -> str:
        parts = (self.mac, self.id, self.domain, self.name, str(self.address))
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Definition:
    """One network as its XML says. None means that the XML does not say."""

    name: str
    mode: Mode
    uuid: str | None = None
    bridge: IfName | None = None
    mac: str | None = None
    mtu: int | None = None
    stp: bool | None = None
    domain: str | None = None
    addresses: tuple[Address, ...] = ()
    ranges: tuple[DhcpRange, ...] = ()
    hosts: tuple[DhcpHost, ...] = ()
    forward_dev: IfName | None = None
    nat_ipv6: bool = False
    nat_source: tuple[str, str] | None = None
    nat_ports: tuple[int, int] | None = None
    delay: float | None = None
    """Of the bridge's ports with STP, in seconds."""
    mac_table: bool = False
    """libvirt, not the kernel, tells the bridge where each MAC is (macTableManager)."""
    bandwidth: bool = False
    guest_ipv6: bool = False
    """ipv6='yes': guests may speak IPv6 to each other without an address of the host."""
    tftp: bool = False
    dns: bool = True
    routes: tuple[StaticRoute, ...] = ()
    made_by_vnetd: bool = False

    def __hash__(self) -> int:
        """Cheap, for what is remembered of each of hundreds."""
        return hash((self.name, self.uuid, self.bridge))

    def translates(self, family: Family) -> bool:
        """Guests' packets leave with an address of the host. libvirt routes IPv6 of a NAT network,
        unless <nat ipv6='yes'> says otherwise.
        """
        return self.mode is Mode.NAT and (family is Family.IPV4 or self.nat_ipv6)

    @property
    def dhcp_families(self) -> frozenset[Family]:
        """A reservation alone has its dnsmasq answer, without any range."""
        served = [item.start for item in self.ranges] + [host.address for host in self.hosts]
        return frozenset(Family.of(address) for address in served)


@dataclass(frozen=True, slots=True)
class Network:
    """One network as libvirt keeps it. A transient one has no config, a stopped one no live."""

    name: str
    config: Definition | None
    live: Definition | None
    autostart: bool

    @property
    def definition(self) -> Definition:
        definition = self.live or self.config
        assert definition is not None, f"network {self.name} is neither defined nor active"
        return definition


@dataclass(frozen=True, slots=True)
class Nic:
    """One interface of a domain, running or not, on a libvirt network."""

    domain: str
    network: str
    mac: str


@dataclass(frozen=True, slots=True)
class Lease:
    """expires: seconds since 1970."""

    network: str
    mac: str
    address: HostAddress
    name: str = ""
    expires: int = 0


@dataclass(frozen=True, slots=True)
class Libvirt:
    """session: counts the connections; another daemon may answer on the next one."""

    version: str
    session: int
    networks: Mapping[str, Network]
    taps: tuple[Tap, ...] = ()
    ports: frozenset[str] = frozenset()
    """UUIDs of the ports that libvirt has on record, of networks that have taps."""
    leases: tuple[Lease, ...] = ()
    """Of the networks that are asked for or have reservations, the newest of each first."""
    nics: tuple[Nic, ...] = ()
    """Of the domains that are asked for."""
    blocked: frozenset[str] = frozenset()
    """Networks that did not start because a link has their bridge's name."""
    taken_ports: Mapping[str, str] = field(default_factory=dict)
    """Networks whose dnsmasq did not start → the ports that others have, and who."""
    read_only: bool = False
    """It lets vnetd look, but change nothing."""
    refused: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Domains that failed to start → the networks of theirs that were not active then."""
    lost_chains: bool = False
    """A start failed because libvirt's own chains are gone: libvirt makes them once per process."""
    chains_failed: bool = False
    """libvirt could not make its chains in the first place, and fails ever since."""
    asked_at: float = field(default=0.0, compare=False)
    """Monotonic. It answers when it is through with a network that it is starting."""
