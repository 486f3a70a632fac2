"""How the next router, or the neighbours on the uplink, come to send packets to a network."""

from __future__ import annotations

from collections.abc import Collection

from vnetd.core.model import HostRoute, IfName, Observed, Subnet


def uplink(
    subnet: Subnet, bridges: Collection[IfName | None], observed: Observed
) -> HostRoute | None:
    """The route to the neighbours of which the subnet is a part, as the kernel chooses it. Tunnels
    have no neighbours, nor MAC addresses.
    """
    lans = {link.name for link in (observed.links or {}).values() if link.mac}
    wider = [
        route
        for route in observed.routes or ()
        if route.via is None
        and route.dev in lans
        and route.dev not in bridges
        and not route.is_default
        and route.to.version == subnet.version
        and route.to.prefixlen < subnet.prefixlen
        and route.to.overlaps(subnet)
    ]
    return max(wider, key=lambda route: (route.to.prefixlen, -route.metric), default=None)
