"""What networks need of their host beside links and rules: forwarding, and a living dnsmasq."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vnetd.core.model import Definition, IfName, Mode

IPV4_FORWARDING = "net/ipv4/ip_forward"
IPV6_FORWARDING = "net/ipv6/conf/all/forwarding"
_ROUTED = (Mode.NAT, Mode.ROUTE, Mode.OPEN)


def forwarding_sysctls(networks: Iterable[Definition]) -> list[str]:
    """All that may matter, by their names below /proc/sys."""
    found = [IPV4_FORWARDING, IPV6_FORWARDING]
    for device in sorted({device for network in networks for device in _devices(network)}):
        found += [f"net/ipv4/conf/{device}/forwarding", f"net/ipv6/conf/{device}/forwarding"]
    return found


def sysctls(network: Definition, have: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, value) of each that is not as the network needs it, in the order in which to set them.

    Where the kernel routes IPv6 it takes no router advertisements, unless accept_ra is 2: the
    host would lose its own default route.
    """
    if network.mode not in _ROUTED:
        return
    versions = {address.version for address in network.addresses}
    devices = _devices(network)
    wanted: list[tuple[str, str]] = []
    if 4 in versions:
        wanted.append((IPV4_FORWARDING, "1"))
        wanted += [(f"net/ipv4/conf/{dev}/forwarding", "1") for dev in devices]
    if 6 in versions:
        fed = [name for name, value in have.items() if name.endswith("/accept_ra") and value == "1"]
        wanted += [(name, "2") for name in fed]
        wanted.append((IPV6_FORWARDING, "1"))
        wanted += [(f"net/ipv6/conf/{dev}/forwarding", "1") for dev in devices]
    for name, value in wanted:
        if have.get(name, value) != value:
            yield name, value


def _devices(network: Definition) -> list[IfName]:
    return [device for device in (network.bridge, network.forward_dev) if device is not None]


def dnsmasq(networks: Sequence[Definition]) -> list[str]:
    """Networks for which libvirt runs one: for DNS, unless that is off, DHCP and TFTP."""
    return [
        network.name
        for network in networks
        if network.mode.has_own_bridge
        and network.addresses
        and (network.dns or network.ranges or network.hosts or network.tftp)
    ]
