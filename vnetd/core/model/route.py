"""Where packets go: routes, and addresses for which the host answers in others' place."""

from __future__ import annotations

from dataclasses import dataclass

from vnetd.core.basics import HostAddress, IfName, Subnet


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
class StaticRoute:
    """A network's own way to what lies behind one of its guests."""

    to: Subnet
    via: HostAddress
    metric: int = 1
    """libvirt's own, where its XML names none (virNetDevIPRouteGetMetric)."""

    def __str__(self) -> str:
        return f"{self.to} via {self.via}" + (f" metric {self.metric}" if self.metric != 1 else "")


@dataclass(frozen=True, slots=True)
class HostRoute:
    """One next hop of the kernel's main table. dev: None where it leads nowhere on purpose
    (blackhole, unreachable, prohibit). via: None to neighbours on the link itself.
    """

    to: Subnet
    dev: IfName | None
    via: HostAddress | None = None
    metric: int = 0
    made_by_vnetd: bool = False

    def __str__(self) -> str:
        via = f" via {self.via}" if self.via else ""
        return f"{self.to}{via} dev {self.dev}" if self.dev else f"{self.to} to nowhere"

    @property
    def is_default(self) -> bool:
        """Or one of the halves that VPNs put before it: 0.0.0.0/1, 2000::/3."""
        return self.to.prefixlen <= (1 if self.to.version == 4 else 3)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An IPv6 address for which the host answers its neighbours on a link: ip-neighbour(8)."""

    dev: IfName
    address: HostAddress
    made_by_vnetd: bool = True
