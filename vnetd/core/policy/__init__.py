"""The policy: TOML text in, a checked Policy out, or every mistake in it at once. One file for each
part of it; others import from here.
"""

from vnetd.core.policy.bridges import INSTEAD, WIRELESS, BridgePolicy, BridgePort, uplink_name
from vnetd.core.policy.forwards import Forward, Protocol
from vnetd.core.policy.networks import SUPPORTED_MODES, Firewall, NetworkPolicy
from vnetd.core.policy.policy import Coexist, Enforcement, Policy, PolicyText, Unlisted, parse
from vnetd.core.policy.render import render
from vnetd.core.policy.retention import Retention
from vnetd.core.policy.routing import Announce

__all__ = [
    "INSTEAD",
    "SUPPORTED_MODES",
    "WIRELESS",
    "Announce",
    "BridgePolicy",
    "BridgePort",
    "Coexist",
    "Enforcement",
    "Firewall",
    "Forward",
    "NetworkPolicy",
    "Policy",
    "PolicyText",
    "Protocol",
    "Retention",
    "Unlisted",
    "parse",
    "render",
    "uplink_name",
]
