"""The values that vnetd thinks in: what libvirt, the kernel and a policy say, in one vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vnetd.core.basics import Address as Address
from vnetd.core.basics import Cause as Cause
from vnetd.core.basics import Family as Family
from vnetd.core.basics import HostAddress as HostAddress
from vnetd.core.basics import IfName as IfName
from vnetd.core.basics import Subnet as Subnet
from vnetd.core.link import Link as Link
from vnetd.core.packets.firewall import Firewall
from vnetd.core.tap import Tap as Tap
from vnetd.core.ways import HostRoute as HostRoute
from vnetd.core.ways import Proxy as Proxy
from vnetd.core.ways import StaticRoute as StaticRoute


class Source(StrEnum):
    """Where an observation comes from; each is looked at on its own."""

    LIBVIRT = "libvirt"
    LINKS = "links"
    FIREWALL = "firewall"
    GUARD = "guard"
    SYSCTLS = "sysctls"
    DNSMASQ = "dnsmasq"
    FILTERS = "filters"
    UPLINKS = "uplinks"
    ROUTES = "routes"


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
    def has_guard(self) -> bool:
        """A flush opens or cuts it, so there is something to guard."""
        return self in (Mode.NAT, Mode.ISOLATED)


class State(StrEnum):
    CONVERGED = "converged"
    HEALING = "healing"
    DRIFTED = "drifted"
    DEGRADED = "degraded"
    PAUSED = "paused"


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
class Intruder:
    """A socket of another process on one of the ports that a network's dnsmasq serves. process: ""
    where the kernel does not tell.
    """

    network: str
    what: str
    process: str


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


@dataclass(frozen=True, slots=True)
class Route:
    destination: Subnet
    gateway: HostAddress | None = None
    metric: int = 0
    table: int = 254

    def __str__(self) -> str:
        parts = [str(self.destination) if self.destination.prefixlen else "default"]
        parts += [f"via {self.gateway}"] if self.gateway else []
        parts += [f"metric {self.metric}"] if self.metric else []
        parts += [f"table {self.table}"] if self.table != 254 else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Owner:
    """Another tool that leads a link. where: its file or place. cure: what hands the link over."""

    tool: str
    where: str
    cure: str

    def __str__(self) -> str:
        return f"{self.tool} ({self.where})"


@dataclass(frozen=True, slots=True)
class Taken:
    """What an uplink gave to the bridge that took it in."""

    bridge: IfName
    uplink: IfName
    addresses: frozenset[Address] = frozenset()
    routes: frozenset[Route] = frozenset()


@dataclass(frozen=True, slots=True)
class Refusal:
    """An uplink that was put back, why, and under which policy of its bridge."""

    bridge: IfName
    uplink: IfName
    why: str
    policy: str


@dataclass(frozen=True, slots=True)
class Uplinks:
    """What matters of links to bridges of the host only. Empty without any in the policy.

    asked: the bridges and uplinks that it was read for. leased: links whose IPv4 address a DHCP
    client must renew. routes: of each bridge.
    """

    asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pci: Mapping[IfName, str] = field(default_factory=dict)
    wireless: frozenset[IfName] = frozenset()
    leased: frozenset[IfName] = frozenset()
    owners: Mapping[str, Owner] = field(default_factory=dict)
    routes: Mapping[IfName, frozenset[Route]] = field(default_factory=dict)
    taken: tuple[Taken, ...] = ()
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Raised:
    """A sysctl: its value before vnetd set it, and since."""

    before: str
    value: str


@dataclass(frozen=True, slots=True, order=True)
class Chain:
    family: Family
    table: str
    name: str

    def __str__(self) -> str:
        v6 = "IPv6 " if self.family is Family.IPV6 else ""
        return f"{v6}{self.table} {self.name}"


class World(StrEnum):
    """The firewall that libvirt writes to."""

    IPTABLES_NFT = "iptables (nf_tables)"
    IPTABLES_LEGACY = "iptables-legacy"
    NFTABLES = "nftables"
    NONE = "none"

    @property
    def is_iptables(self) -> bool:
        return self in (World.IPTABLES_NFT, World.IPTABLES_LEGACY)


Chains = Mapping[Chain, tuple[str, ...]]
"""Rules as the tool that lists them prints them, without their chain."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All chains, each rule in iptables-save's form without -A CHAIN.

    elsewhere: the same of worlds that libvirt has left; what it wrote there stays until removed.
    Of libvirt's nftables backend also each rule's handle, which of them libvirt will delete by
    itself (remembered), and whether libvirt has not written for a while (settled).
    """

    world: World
    chains: Chains = field(default_factory=dict)
    elsewhere: Mapping[World, Chains] = field(default_factory=dict)
    handles: Mapping[Chain, tuple[int, ...]] = field(default_factory=dict)
    remembered: frozenset[tuple[Chain, int]] = frozenset()
    settled: bool = True


class Held(StrEnum):
    """How well the kernel keeps others away from the guard."""

    PERSISTENT = "owner, persist"
    OWNED = "owner"
    """It goes when vnetd stops: the kernel is older than 6.9."""
    OPEN = "open"
    """Others can flush it: the kernel is older than 5.12."""


@dataclass(frozen=True, slots=True)
class GuardTable:
    """The guard as the kernel has it. held: None if there is none. mine: this process holds it.
    chains: the digests of the rules in each.
    """

    held: Held | None
    mine: bool
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the policy needs to know beside what is looked at anyhow. networks: it names some.
    links: that it names. leases: networks whose leases it needs. domains: whose interfaces,
    running or not. subnets: that its networks have or route to. bridges: of the host, and how
    it names their uplinks.
    """

    networks: bool = False
    links: frozenset[IfName] = frozenset()
    leases: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    uplinks: frozenset[str] = frozenset()
    """That networks are bound to."""
    bridges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subnets: frozenset[Subnet] = frozenset()


@dataclass(frozen=True, slots=True)
class Observed:
    """The newest look at each source; None where there was none yet."""

    libvirt: Libvirt | None = None
    links: Mapping[IfName, Link] | None = None
    firewall: Ruleset | None = None
    guard: GuardTable | None = None
    sysctls: Mapping[str, str] | None = None
    """By their names below /proc/sys."""
    dnsmasq: frozenset[str] | None = None
    """Networks whose dnsmasq lives."""
    reserved: Mapping[str, frozenset[HostAddress]] = field(default_factory=dict)
    """What their dnsmasqs have been told to reserve, of those where that can be read."""
    intruders: tuple[Intruder, ...] = ()
    asked: Asked = Asked()
    filters: Firewall | None = None
    leaving: frozenset[str] = frozenset()
    """Networks that libvirt had active when it was asked, and has begun to take down since."""
    uplinks: Uplinks | None = None
    insist: bool = False
    """Somebody asked for this pass: what was given up is tried once more."""
    routes: tuple[HostRoute, ...] | None = None
    """Default routes, and those that overlap a subnet of a network."""
    nameservers: frozenset[HostAddress] = frozenset()
    """The host's own."""
    neighbours: Mapping[IfName, frozenset[HostAddress]] = field(default_factory=dict)
    """IPv6 addresses of guests that bridges have heard of, where a LAN's own prefix is theirs."""
    proxies: frozenset[Proxy] = frozenset()
    raised: Mapping[str, Raised] = field(default_factory=dict)
    """Sysctls that vnetd has set and nobody has changed since."""

    @property
    def links_of_interest(self) -> frozenset[IfName]:
        """Changes of other links need no look, unless they are ports of these."""
        libvirt = self.libvirt
        if libvirt is None:
            return self.asked.links
        networks = libvirt.networks.values()
        definitions = [d for n in networks for d in (n.live, n.config) if d is not None]
        names = {name for d in definitions for name in (d.bridge, d.forward_dev) if name}
        return self.asked.links | names | {tap.device for tap in libvirt.taps}


FIREWALL_OBJECT = "firewall"
"""The same for what concerns no network alone."""
HOST_OBJECT = "host"


def bridge_object(name: str) -> str:
    return f"bridge/{name}"


def network_object(name: str) -> str:
    """The name under which records, signals and logs speak of a network."""
    return f"network/{name}"


def network_of(object_: str) -> str | None:
    """None: it is of no network alone."""
    name = object_.removeprefix(network_object(""))
    return name if name != object_ else None
