"""The rules that libvirt's iptables backend installs (src/network/network_iptables.c and
bridge_driver_linux.c; the same in libvirt 9.0 and 11.3), as iptables-save prints them.

libvirt inserts every rule at the head of its chain. So within a network the rules read in reverse
of the order in which libvirt writes them, and the network that came last stands first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from vnetd.core.model import Address, Chain, Definition, Family, Mode, Ruleset

# Built-in chain → libvirt's chains that it jumps to, in the order in which they must stand: with
# bridge-nf-call-iptables on, FWX behind FWI would reject guest-to-guest traffic on one bridge.
_JUMPS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("filter", "INPUT"): ("LIBVIRT_INP",),
    ("filter", "FORWARD"): ("LIBVIRT_FWX", "LIBVIRT_FWI", "LIBVIRT_FWO"),
    ("filter", "OUTPUT"): ("LIBVIRT_OUT",),
    ("nat", "POSTROUTING"): ("LIBVIRT_PRT",),
    ("mangle", "POSTROUTING"): ("LIBVIRT_PRT",),
}

BUILTIN_CHAINS: tuple[Chain, ...] = tuple(
    Chain(family, table, name) for family in Family for table, name in _JUMPS
)
"""Chains that libvirt shares with everybody else: only its jumps in them are libvirt's."""

PRIVATE_CHAINS: tuple[Chain, ...] = tuple(
    Chain(family, table, target)
    for family in Family
    for (table, _), targets in _JUMPS.items()
    for target in targets
)


def targets(chain: Chain) -> dict[str, Chain]:
    """libvirt's jumps in a built-in chain, in order, each with the chain that it leads to.

    libvirt makes all of them, and their chains, when the first network starts.
    """
    names = _JUMPS[(chain.table, chain.name)]
    return {f"-j {name}": Chain(chain.family, chain.table, name) for name in names}


# A pass asks for each network's rules several times, and a flush is repaired no sooner.
@lru_cache(maxsize=4096)
def network_rules(network: Definition) -> Mapping[Chain, tuple[str, ...]]:
    """One active network's rules, in reading order."""
    if not network.mode.has_rules or network.bridge is None:
        return {}
    rules: dict[Chain, list[str]] = {}

    def add(fam: Family, table: str, chain: str, *lines: str) -> None:
        rules.setdefault(Chain(fam, table, chain), []).extend(lines)

    for fam in families(network):
        for address in reversed(network.addresses):
            if Family.of(address) is fam:
                for chain, lines in _address_rules(network, address).items():
                    add(fam, chain.table, chain.name, *lines)
        reject = "icmp-port-unreachable" if fam is Family.IPV4 else "icmp6-port-unreachable"
        bridge = network.bridge
        add(fam, "filter", "LIBVIRT_FWI", f"-o {bridge} -j REJECT --reject-with {reject}")
        add(fam, "filter", "LIBVIRT_FWO", f"-i {bridge} -j REJECT --reject-with {reject}")
        add(fam, "filter", "LIBVIRT_FWX", f"-i {bridge} -o {bridge} -j ACCEPT")
        for chain_name, flag, services in _services(network, fam):
            for protocol, port in services:
                match = f"-p {protocol} -m {protocol} --dport {port}"
                add(fam, "filter", chain_name, f"{flag} {bridge} {match} -j ACCEPT")
    if Family.IPV4 in network.dhcp_families:
        fill = "-p udp -m udp --dport 68 -j CHECKSUM --checksum-fill"
        add(Family.IPV4, "mangle", "LIBVIRT_PRT", f"-o {network.bridge} {fill}")
    return {chain: tuple(lines) for chain, lines in rules.items()}


def families(network: Definition) -> list[Family]:
    """Those in which libvirt makes rules for it: IPv4 whatever its addresses."""
    speaks_ipv6 = any(Family.of(address) is Family.IPV6 for address in network.addresses)
    return list(Family) if speaks_ipv6 or network.guest_ipv6 else [Family.IPV4]


def compose(networks: Iterable[Definition]) -> dict[Chain, tuple[str, ...]]:
    """All of libvirt's chains and jumps with the rules of these networks, newest network first."""
    chains: dict[Chain, list[str]] = {chain: list(targets(chain)) for chain in BUILTIN_CHAINS}
    chains |= {chain: [] for chain in PRIVATE_CHAINS}
    for network in networks:
        for chain, lines in network_rules(network).items():
            chains[chain].extend(lines)
    return {chain: tuple(lines) for chain, lines in chains.items()}


def order(networks: Sequence[Definition], ruleset: Ruleset) -> list[Definition]:
    """The networks in the order in which the ruleset has their rules, newest first.

    Each network has one rule in FWX; a broken ruleset may lack some of them there, so the chain
    that names most networks decides. Networks that no chain names come first, as if just started.
    """
    rules = [(network, network_rules(network)) for network in networks]
    best: list[Definition] = []
    for chain in PRIVATE_CHAINS:
        lines = ruleset.chains.get(chain, ())
        places = {line: place for place, line in reversed(list(enumerate(lines)))}
        found: list[tuple[int, Definition]] = []
        for network, own in rules:
            hits = [places[rule] for rule in own.get(chain, ()) if rule in places]
            if hits:
                found.append((min(hits), network))
        if len(found) > len(best):
            best = [network for _, network in sorted(found, key=lambda item: item[0])]
        if len(best) == len(networks):
            break
    named = {network.name for network in best}
    return [network for network in networks if network.name not in named] + best


def _address_rules(network: Definition, address: Address) -> dict[Chain, tuple[str, ...]]:
    fam, subnet, bridge = Family.of(address), address.network, network.bridge
    nat = network.translates(fam)
    if network.mode is Mode.ISOLATED:
        return {}
    source_dev = f" -i {network.forward_dev}" if network.forward_dev else ""
    out_dev = f" -o {network.forward_dev}" if network.forward_dev else ""
    state = " -m conntrack --ctstate RELATED,ESTABLISHED" if nat else ""
    rules: dict[Chain, tuple[str, ...]] = {
        Chain(fam, "filter", "LIBVIRT_FWO"): (f"-s {subnet} -i {bridge}{out_dev} -j ACCEPT",),
        Chain(fam, "filter", "LIBVIRT_FWI"): (
            f"-d {subnet}{source_dev} -o {bridge}{state} -j ACCEPT",
        ),
    }
    if nat:
        # Multicast and broadcast must keep the guest's address: answers could not find the way.
        local = ("224.0.0.0/24", "255.255.255.255/32") if fam is Family.IPV4 else ("ff02::/16",)
        outside = f"-s {subnet} ! -d {subnet}{out_dev}"
        rules[Chain(fam, "nat", "LIBVIRT_PRT")] = (
            *(f"-s {subnet} -d {group}{out_dev} -j RETURN" for group in local),
            f"{outside} -p tcp {_translation(network, fam, ports=True)}",
            f"{outside} -p udp {_translation(network, fam, ports=True)}",
            f"{outside} {_translation(network, fam, ports=False)}",
        )
    return rules


def _translation(network: Definition, fam: Family, *, ports: bool) -> str:
    low, high = network.nat_ports or (1024, 65535)
    if network.nat_source and fam is Family.IPV4:
        start, end = network.nat_source
        source = start if start == end else f"{start}-{end}"
        return f"-j SNAT --to-source {source}" + (f":{low}-{high}" if ports else "")
    return "-j MASQUERADE" + (f" --to-ports {low}-{high}" if ports else "")


def _services(
    network: Definition, fam: Family
) -> Iterable[tuple[str, str, Sequence[tuple[str, int]]]]:
    """What guests may ask of the host, and the host of guests: DNS, DHCP, TFTP."""
    dns = (("udp", 53), ("tcp", 53))
    if fam is Family.IPV4:
        tftp = (("udp", 69),) if network.tftp else ()
        yield "LIBVIRT_INP", "-i", (*tftp, *dns, ("udp", 67), ("tcp", 67))
        yield "LIBVIRT_OUT", "-o", (*tftp, *dns, ("udp", 68), ("tcp", 68))
    elif any(Family.of(address) is Family.IPV6 for address in network.addresses):
        yield "LIBVIRT_INP", "-i", (("udp", 547), *dns)
        yield "LIBVIRT_OUT", "-o", (("udp", 546), *dns)
