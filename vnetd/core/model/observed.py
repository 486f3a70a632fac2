"""Everything as it was seen last, and what of it a policy asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vnetd.core.basics import HostAddress, IfName, Subnet
from vnetd.core.model.link import Link
from vnetd.core.model.network import Libvirt
from vnetd.core.model.route import HostRoute, Proxy
from vnetd.core.model.ruleset import GuardTable, Ruleset
from vnetd.core.model.uplinks import Uplinks
from vnetd.core.packets.firewall import Firewall


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


@dataclass(frozen=True, slots=True)
class Intruder:
    """A socket of another process on one of the ports that a network's dnsmasq serves. process: ""
    where the kernel does not tell.
    """

    network: str
    what: str
    process: str


@dataclass(frozen=True, slots=True)
class Raised:
    """A sysctl: its value before vnetd set it, and since."""

    before: str
    value: str


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
    connections_full: int | None = None
    """How many connections the kernel tracks, where it has no room for more."""

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
