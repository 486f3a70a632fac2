"""Meet another tool's drop at the place that this tool leaves to its users: with the smallest
accepts that give a network back what libvirt's own rules allow, each marked as vnetd's.

They go behind what the admin has put there, so that a denial by hand stays one; and never wider
than from the network to an uplink and back, so that no other network is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from vnetd.core import foreign
from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Drift, NetworkDrift
from vnetd.core.model import Definition, Family, IfName, Mode, Source, network_object
from vnetd.core.packets import flows, iptables_text
from vnetd.core.packets.evaluate import Index
from vnetd.core.packets.firewall import MARK, Firewall, Hook, Place, Rule, Tool, Verdict
from vnetd.core.policy import Coexist
from vnetd.core.wording import few


@dataclass(frozen=True, slots=True)
class AcceptsDiffer(NetworkDrift):
    """One network's accepts in one chain of another tool. position: where new ones go."""

    place: Place
    why: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    position: int
    source = Source.FILTERS

    def __str__(self) -> str:
        parts = [f"{len(self.missing)} accepts missing"] if self.missing else []
        parts += [f"{len(self.unexpected)} accepts left over"] if self.unexpected else []
        why = f": {self.why}" if self.why else ""
        return f"{self.place}: {', '.join(parts)}{why}"


@dataclass(frozen=True, slots=True)
class ZoneDiffers(NetworkDrift):
    """want: "" for none."""

    bridge: IfName
    want: str
    have: str
    why: str
    source = Source.FILTERS

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"bridge {self.bridge} is in firewalld's zone {self.have or 'by default'}{why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAccepts(Action):
    """position: from 1, of the first to add, once those to remove are gone."""

    place: Place
    add: tuple[str, ...]
    remove: tuple[str, ...]
    position: int

    def __str__(self) -> str:
        parts = [f"add {len(self.add)}"] if self.add else []
        parts += [f"remove {len(self.remove)}"] if self.remove else []
        return f"{', '.join(parts)} accepts of vnetd in {self.place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetZone(Action):
    """zone: "" takes the bridge out of any."""

    network: str
    bridge: IfName
    zone: str

    def __str__(self) -> str:
        return f"put bridge {self.bridge} into firewalld's zone {self.zone or 'by default'}"


@dataclass(frozen=True, slots=True)
class Terms:
    """left: blocks that nobody may meet, or that cannot be met."""

    drift: tuple[AcceptsDiffer | ZoneDiffers, ...] = ()
    left: tuple[foreign.Block, ...] = ()


_USER_CHAINS = ("DOCKER-USER", "ufw-user-", "ufw6-user-")


def diff(
    allowed: frozenset[Coexist], kept: Sequence[Definition], firewall: Firewall
) -> Iterator[Drift | Conflict]:
    found = terms(allowed, tuple(kept), firewall)
    yield from found.drift
    for block in found.left:
        yield Conflict(network_object(block.network), str(block), block.cause)


def plan(drift: Iterable[Drift]) -> Iterator[Action]:
    for item in drift:
        match item:
            case AcceptsDiffer():
                yield SetAccepts(
                    objects=(item.object,),
                    reason=str(item),
                    place=item.place,
                    add=item.missing,
                    remove=item.unexpected,
                    position=item.position + 1,
                )
            case ZoneDiffers():
                yield SetZone(
                    objects=(item.object,),
                    reason=str(item),
                    network=item.network,
                    bridge=item.bridge,
                    zone=item.want,
                )
            case _:
                pass


@lru_cache(maxsize=2)  # most passes bring no new look at the firewall
def terms(
    allowed: frozenset[Coexist],
    networks: tuple[Definition, ...],
    firewall: Firewall,
) -> Terms:
    """What must change for these networks to get through, and what still blocks them then."""
    index = Index(firewall.without(MARK))
    wanted: dict[tuple[str, Place], list[str]] = {}
    whys: dict[tuple[str, Place], list[str]] = {}
    zones: dict[ZoneDiffers, list[str]] = {}
    left: list[foreign.Block] = []
    for network in networks:
        bare = index.about(foreign.interfaces(network, firewall))
        for block in foreign.blocks(network, networks, bare):
            place = _extension(block, bare) if _may(allowed, block) else None
            zone = _zone(block, network, firewall) if _may(allowed, block) else None
            if zone is not None:
                zones.setdefault(zone, []).append(str(block))
            elif place is not None:
                rules = list(_accepts(block, network, firewall))
                if not _helps(block, network, networks, bare, place, rules):
                    left.append(block)
                    continue
                found = wanted.setdefault((network.name, place), [])
                found += [rule for rule in rules if rule not in found]
                whys.setdefault((network.name, place), []).append(str(block))
            else:
                left.append(block)
    drift: list[AcceptsDiffer | ZoneDiffers] = [
        replace(zone, why=_joined(of_zone)) for zone, of_zone in zones.items()
    ]
    drift += _differences(wanted, whys, firewall)
    drift += _zones_left(allowed, networks, firewall)
    return Terms(tuple(drift), tuple(left))


def _may(allowed: frozenset[Coexist], block: foreign.Block) -> bool:
    """What an admin has denied by hand, in a chain that is the admin's own, stays denied."""
    by_hand = block.decision.rule is not None and _is_users(block.decision.place)
    return block.owner in allowed and not by_hand


def _is_users(place: Place) -> bool:
    return place.chain.startswith(_USER_CHAINS)


def _extension(block: foreign.Block, firewall: Firewall) -> Place | None:
    base = block.decision.base
    six = "6" if base.family == Family.IPV6 else ""
    name = f"ufw{six}-user-{block.decision.hook}"
    if block.owner == Coexist.DOCKER:
        name = "DOCKER-USER" if block.decision.hook is Hook.FORWARD else ""
    place = Place(base.tool, base.family, "filter", name)
    return place if base.table == "filter" and place in firewall.chains else None


def _accepts(block: foreign.Block, network: Definition, firewall: Firewall) -> Iterator[str]:
    comment = network.name.replace("\\", "\\\\").replace('"', '\\"')
    mark = f'-m comment --comment "{MARK}{comment}" -j ACCEPT'
    for flow in block.stopped:
        for rule in _matches(flow, block.decision.hook, network, firewall):
            yield f"{rule} {mark}"


def _matches(
    flow: flows.Flow, hook: Hook, network: Definition, firewall: Firewall
) -> Iterator[str]:
    bridge, six = network.bridge, flow.family is Family.IPV6
    if hook in (Hook.INPUT, Hook.OUTPUT):
        yield from _services(flow, hook, network)
        return
    if flow.kind is flows.Kind.PEERS:
        own = network.mode.has_own_bridge
        yield f"-i {bridge} -o {bridge}" + ("" if own else " -m physdev --physdev-is-bridged")
        return
    uplinks = firewall.uplinks.get(flow.family, frozenset())
    if network.forward_dev is not None:
        uplinks = frozenset({network.forward_dev})
    subnets = [a.network for a in network.addresses if (a.version == 6) is six]
    for subnet in subnets:
        for uplink in sorted(uplinks):
            match flow.kind:
                case flows.Kind.OUT:
                    yield f"-s {subnet} -i {bridge} -o {uplink}"
                case flows.Kind.ANSWERS:
                    state = "-m conntrack --ctstate RELATED,ESTABLISHED"
                    yield f"-d {subnet} -i {uplink} -o {bridge} {state}"
                case flows.Kind.IN:
                    yield f"-d {subnet} -i {uplink} -o {bridge}"
                case _:
                    pass


def _services(flow: flows.Flow, hook: Hook, network: Definition) -> Iterator[str]:
    """What guests ask of the host, and its answers."""
    asks = hook is Hook.INPUT
    side = f"-i {network.bridge}" if asks else f"-o {network.bridge}"
    match flow.kind:
        case flows.Kind.DHCP:
            ports = (67, 68) if flow.family is Family.IPV4 else (547, 546)
            yield f"{side} -p udp -m udp --dport {ports[0] if asks else ports[1]}"
        case flows.Kind.DNS:
            for protocol in ("udp", "tcp"):
                port = "--dport" if asks else "--sport"
                yield f"{side} -p {protocol} -m {protocol} {port} 53"
        case flows.Kind.NEIGHBOURS:
            yield f"{side} -p ipv6-icmp"
        case _:
            pass


def _helps(
    block: foreign.Block,
    network: Definition,
    networks: Iterable[Definition],
    bare: Firewall,
    place: Place,
    texts: Iterable[str],
) -> bool:
    """Whether the same rule or policy then stops nothing of the network any more."""
    rules = [rule for text in texts for rule in iptables_text.rules(text)]
    tried = bare.with_rules(place, position(bare, place), rules)
    after = foreign.blocks(network, networks, tried)
    return all(str(other.decision) != str(block.decision) for other in after)


def position(firewall: Firewall, place: Place) -> int:
    """From 0: at the end, but before a RETURN that ends the chain for everything."""
    rules = firewall.chains[place].rules
    last = rules[-1] if rules else None
    ends = last is not None and last.verdict is Verdict.RETURN and not last.matches
    return len(rules) - 1 if ends else len(rules)


def _differences(
    wanted: Mapping[tuple[str, Place], Sequence[str]],
    whys: Mapping[tuple[str, Place], Sequence[str]],
    firewall: Firewall,
) -> Iterator[AcceptsDiffer]:
    have: dict[tuple[str, Place], list[Rule]] = {}
    for place, chain in firewall.chains.items():
        for rule in chain.rules:
            if rule.comment.startswith(MARK) and place.tool is not Tool.NFT:
                key = rule.comment.removeprefix(MARK), place
                have.setdefault(key, []).append(rule)
    gone: Counter[Place] = Counter()
    """Rules that are removed before, which other networks had there."""
    for key in sorted({*wanted, *have}):
        network, place = key
        mine = have.get(key, [])
        want = {
            _meaning(rule): text
            for text in wanted.get(key, ())
            for rule in iptables_text.rules(text)
        }
        missing = dict(want)
        unexpected = []
        for rule in mine:
            # Also a second copy of one is too many.
            if missing.pop(_meaning(rule), None) is None:
                unexpected.append(rule.text)
        if missing or unexpected:
            gone[place] += len(unexpected)
            at = position(firewall, place) - gone[place]
            why = _joined(whys.get(key, ()))
            yield AcceptsDiffer(network, place, why, tuple(missing.values()), tuple(unexpected), at)


def _joined(whys: Sequence[str]) -> str:
    return few(whys, most=2, between="; ")


def _meaning(rule: Rule) -> object:
    """iptables-save writes a rule in its own way."""
    return rule.verdict, frozenset(rule.matches), rule.comment


def _zone(block: foreign.Block, network: Definition, firewall: Firewall) -> ZoneDiffers | None:
    """libvirt brings zones of its own, which let through what its networks need."""
    if block.owner != Coexist.FIREWALLD or network.bridge is None:
        return None
    if not network.mode.has_own_bridge:
        return None
    want = "libvirt-routed" if network.mode is Mode.ROUTE else "libvirt"
    have = firewall.zones.get(network.bridge, "")
    if have == want:
        return None
    return ZoneDiffers(network.name, network.bridge, want, have, "")


def _zones_left(
    allowed: frozenset[Coexist], networks: Iterable[Definition], firewall: Firewall
) -> Iterator[ZoneDiffers]:
    """Bridges that vnetd has put into a zone, and need not be there any more."""
    bridges = {network.bridge for network in networks}
    for bridge, (network, before) in firewall.zoned.items():
        have = firewall.zones.get(bridge, "")
        if have and have != before and (bridge not in bridges or Coexist.FIREWALLD not in allowed):
            yield ZoneDiffers(network, IfName(bridge), before, have, "")
