"""The values that vnetd thinks in: what libvirt, the kernel and a policy say, in one vocabulary.
Others import from here, but for what a link alone is made of.
"""

from vnetd.core.basics import Address, Cause, Family, HostAddress, IfName, Subnet
from vnetd.core.model.link import Link
from vnetd.core.model.network import (
    Definition,
    DhcpHost,
    DhcpRange,
    Lease,
    Libvirt,
    Mode,
    Network,
    Nic,
)
from vnetd.core.model.objects import (
    FIREWALL_OBJECT,
    HOST_OBJECT,
    State,
    bridge_object,
    network_object,
    network_of,
)
from vnetd.core.model.observed import Asked, Intruder, Observed, Raised, Source
from vnetd.core.model.route import HostRoute, Proxy, Route, StaticRoute
from vnetd.core.model.ruleset import Chain, Chains, GuardTable, Held, Ruleset, World
from vnetd.core.model.tap import Tap
from vnetd.core.model.uplinks import Owner, Refusal, Taken, Uplinks

__all__ = [
    "FIREWALL_OBJECT",
    "HOST_OBJECT",
    "Address",
    "Asked",
    "Cause",
    "Chain",
    "Chains",
    "Definition",
    "DhcpHost",
    "DhcpRange",
    "Family",
    "GuardTable",
    "Held",
    "HostAddress",
    "HostRoute",
    "IfName",
    "Intruder",
    "Lease",
    "Libvirt",
    "Link",
    "Mode",
    "Network",
    "Nic",
    "Observed",
    "Owner",
    "Proxy",
    "Raised",
    "Refusal",
    "Route",
    "Ruleset",
    "Source",
    "State",
    "StaticRoute",
    "Subnet",
    "Taken",
    "Tap",
    "Uplinks",
    "World",
    "bridge_object",
    "network_object",
    "network_of",
]
