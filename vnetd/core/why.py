"""Why a guest does not get through: its way hop by hop, each with what is right or wrong there.

Where one thing breaks others, only the first is told: a bridge that is gone has no address either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address

from vnetd.core import foreign
from vnetd.core.diff import Diff
from vnetd.core.keep import announce, bridges, rules
from vnetd.core.model import (
    Definition,
    Family,
    HostAddress,
    IfName,
    Link,
    Mode,
    Observed,
    Tap,
    World,
)
from vnetd.core.packets import flows
from vnetd.core.packets.evaluate import Decision
from vnetd.core.packets.firewall import Field, Firewall, Match, Rule, network_span
from vnetd.core.policy import Policy
from vnetd.core.wording import few
from vnetd.errors import NoSuchNetwork, VnetdError

_MOST_TRIED = 1024


class Word(StrEnum):
    OK = "ok"
    MAYBE = "maybe"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """at: the part of the way. hook to process: of a firewall's verdict."""

    at: str
    word: Word = Word.OK
    text: str
    cure: str = ""
    hook: str = ""
    table: str = ""
    chain: str = ""
    rule: str = ""
    process: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """guest: None asks for any guest of the network. destination: None is the default gateway."""

    network: str
    live: Definition | None
    guest: str | None
    destination: HostAddress | None

    @property
    def family(self) -> Family:
        if self.destination is not None:
            return Family.of(self.destination)
        addresses = self.live.addresses if self.live else ()
        families = [Family.of(address) for address in addresses]
        return Family.IPV6 if families and Family.IPV4 not in families else Family.IPV4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What only this question asks of the host. no_route: what the kernel said in its place.

    elsewhere: parts of the network's subnets that are routed to other links.
    sysctls: by their names below /proc/sys. carriers: links that have one or not.
    """

    out: IfName | None = None
    gateway: str = ""
    no_route: str = ""
    elsewhere: Mapping[str, IfName] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    carriers: Mapping[IfName, bool] = field(default_factory=dict)
    dnsmasq: int | None = None
    listening: frozenset[int] = frozenset()
    """UDP ports of DNS and DHCP that somebody listens on, whoever it is."""


@dataclass(frozen=True, slots=True)
class Answer:
    question: Question
    steps: tuple[Step, ...]
    gateway: str = ""

    @property
    def word(self) -> Word:
        words = {step.word for step in self.steps}
        return next(w for w in (Word.BLOCKED, Word.MAYBE, Word.OK) if w in words or w is Word.OK)


def free_address(live: Definition, fam: Family) -> str:
    """One that no lease or reservation has, for a guest made to try; "" if there is none."""
    for address in live.addresses:
        if Family.of(address) is not fam:
            continue
        taken = {host.address for host in live.hosts} | {address.ip}
        count = min(address.network.num_addresses - 2, _MOST_TRIED)
        for back in range(2, count + 2):
            candidate = address.network[-back]
            ranges = (r for r in live.ranges if r.start.version == candidate.version)
            inside = any(int(r.start) <= int(candidate) <= int(r.end) for r in ranges)
            if candidate not in taken and not inside:
                return f"{candidate}/{address.network.prefixlen}"
    return ""


def question(observed: Observed, subject: str, destination: str) -> Question:
    """Raises VnetdError where there is nothing of that name."""
    libvirt = observed.libvirt
    if libvirt is None:
        raise VnetdError("libvirt has not answered yet; see: vnetctl status")
    to: HostAddress | None = None
    if destination:
        try:
            to = ip_address(destination)
        except ValueError:
            raise VnetdError(f"{destination} is not an IP address") from None
    guest = None
    network = libvirt.networks.get(subject)
    if network is None:
        known = libvirt.networks
        taps = [t for t in libvirt.taps if t.domain == subject and t.network in known]
        if not taps:
            wrong = f"{subject} is neither a network nor a running guest on one"
            raise NoSuchNetwork(f"{wrong}; see: vnetctl status, virsh list")
        guest, network = subject, libvirt.networks[taps[0].network]
    return Question(network.name, network.live, guest, to)


def answer(
    asked: Question, policy: Policy, observed: Observed, found: Diff, scene: Scene
) -> Answer:
    return Answer(asked, tuple(_steps(asked, policy, observed, found, scene)), scene.gateway)


def _steps(
    asked: Question, policy: Policy, observed: Observed, found: Diff, scene: Scene
) -> Iterator[Step]:
    live, links = asked.live, observed.links or {}
    if live is None:
        yield _blocked("network", f"{asked.network} is not active", _start(asked.network))
        return
    yield Step(at="network", text=f"{live.name} is active, mode {policy.meant(live).mode}")
    if live.bridge is None:
        yield Step(at="bridge", text="guests are not on a bridge of the host: no further look")
        return
    bridge = _bridge(live, live.bridge, links)
    yield bridge
    if bridge.word is Word.BLOCKED:
        return
    yield from _taps(asked, live.bridge, observed, links)
    if live.mode.has_own_bridge:
        missing = [item for item in found.drift if isinstance(item, bridges.AddressMissing)]
        yield from _addresses(live, [item for item in missing if item.network == live.name])
        yield from _dnsmasq(live, scene)
        if live.mode is not Mode.ISOLATED:
            yield from _routing(asked, live.bridge, live, links, scene)
            yield from _router(asked, live, policy, observed)
        elif asked.destination is not None:
            wrong = "the network is isolated: guests reach the host and each other only"
            yield _blocked("route", wrong, 'give it mode = "nat" or "route"')
    yield from _firewall(asked, live, policy, observed, found, scene)


def _bridge(live: Definition, bridge: IfName, links: Mapping[IfName, Link]) -> Step:
    link = links.get(bridge)
    own = live.mode.has_own_bridge
    if link is None:
        cure = f"restart the network: {_restart(live.name)}" if own else "make the bridge"
        return _blocked("bridge", f"{bridge} does not exist", cure)
    if not link.up:
        return _blocked("bridge", f"{bridge} is down", f"ip link set {bridge} up")
    return Step(at="bridge", text=f"{bridge} is up")


def _taps(
    asked: Question, bridge: IfName, observed: Observed, links: Mapping[IfName, Link]
) -> Iterator[Step]:
    all_taps = observed.libvirt.taps if observed.libvirt else ()
    taps = [t for t in all_taps if t.network == asked.network and asked.guest in (None, t.domain)]
    for tap in taps:
        yield _tap(tap, bridge, links.get(tap.device))


def _tap(tap: Tap, bridge: IfName, link: Link | None) -> Step:
    name = f"tap {tap.device} of guest {tap.domain}"
    if link is None:
        return _blocked("tap", f"{name} does not exist", f"restart the guest {tap.domain}")
    if link.master != bridge:
        cure = f"ip link set {tap.device} master {bridge}"
        return _blocked("tap", f"{name} is not on bridge {bridge}", cure)
    if not link.up:
        return _blocked("tap", f"{name} is down", f"ip link set {tap.device} up")
    return Step(at="tap", text=f"{name} is on bridge {bridge}")


def _addresses(live: Definition, missing: Iterable[bridges.AddressMissing]) -> Iterator[Step]:
    gone = {item.address for item in missing}
    for address in live.addresses:
        if address in gone:
            cure = f"ip address add {address} dev {live.bridge}"
            yield _blocked("address", f"{address} is missing on {live.bridge}", cure)
        else:
            yield Step(at="address", text=f"{address} is on {live.bridge}")


def _dnsmasq(live: Definition, scene: Scene) -> Iterator[Step]:
    ports = [67] if Family.IPV4 in live.dhcp_families else []
    ports += [53] if live.dns and live.addresses else []
    if not ports:
        return
    if scene.dnsmasq is None:
        cure = "systemctl reload libvirtd starts it again"
        wrong = "is dead: no DHCP, no DNS"
        yield _blocked("dnsmasq", f"dnsmasq of {live.name} {wrong}", cure)
        return
    deaf = [port for port in ports if port not in scene.listening]
    if deaf:
        wrong = f"dnsmasq[{scene.dnsmasq}] does not listen on UDP {', '.join(map(str, deaf))}"
        yield _blocked("dnsmasq", wrong, f"restart the network: {_restart(live.name)}")
    else:
        yield Step(at="dnsmasq", text=f"dnsmasq[{scene.dnsmasq}] listens")


def _routing(
    asked: Question, bridge: IfName, live: Definition, links: Mapping[IfName, Link], scene: Scene
) -> Iterator[Step]:
    yield from _forwarding(asked, bridge, scene)
    to = str(asked.destination or "the outside")
    if scene.out is None:
        down = sorted(link.name for link in links.values() if not link.up)
        hint = f" (down: {few(down)})" if down else ""
        cure = "bring the uplink up, or add the route"
        yield _blocked("route", f"the host has no route to {to}: {scene.no_route}{hint}", cure)
    else:
        via = f" via {scene.gateway}" if scene.gateway else ""
        yield Step(at="route", text=f"{to} is reached by {scene.out}{via}")
        yield _uplink(live, scene.out, links, scene)
    yield from _way_back(bridge, scene)


def _forwarding(asked: Question, bridge: IfName, scene: Scene) -> Iterator[Step]:
    names = ["net/ipv6/conf/all/forwarding"]
    if asked.family is Family.IPV4:
        names = ["net/ipv4/ip_forward", f"net/ipv4/conf/{bridge}/forwarding"]
        if scene.out is not None:
            # Answers come in there.
            names.append(f"net/ipv4/conf/{scene.out}/forwarding")
    off = [name for name in names if scene.sysctls.get(name) == "0"]
    if off:
        cure = f"sysctl -w {off[0]}=1"
        yield _blocked("forwarding", f"{off[0]} is 0: the host forwards nothing there", cure)
    else:
        yield Step(at="forwarding", text="the host forwards")


def _uplink(live: Definition, out: IfName, links: Mapping[IfName, Link], scene: Scene) -> Step:
    link = links.get(out)
    if link is not None and not link.up:
        return _blocked("uplink", f"{out} is down", f"ip link set {out} up")
    if scene.carriers.get(out) is False:
        return _blocked("uplink", f"{out} has no carrier", "look at its cable, or its other end")
    if live.forward_dev is not None and live.forward_dev != out:
        wrong = f"the route leads to {out}, and the network forwards to {live.forward_dev} only"
        return _blocked("uplink", wrong, f"route it by {live.forward_dev}")
    return Step(at="uplink", text=f"{out} is up")


def _way_back(bridge: IfName, scene: Scene) -> Iterator[Step]:
    filters = (scene.sysctls.get(f"net/ipv4/conf/{dev}/rp_filter", "0") for dev in ("all", bridge))
    strict = max(filters) == "1"
    for part, dev in sorted(scene.elsewhere.items()):
        cure = f"ip route delete {part} dev {dev}"
        if strict:
            wrong = f"rp_filter of {bridge} is strict, and the way back to {part} is {dev}"
            yield _blocked("way back", wrong, f"{cure}; or rp_filter=2")
        else:
            yield _blocked("way back", f"answers to {part} leave by {dev}", cure)
    if not scene.elsewhere:
        yield Step(at="way back", text=f"guests are reached by {bridge}")


def _router(
    asked: Question, live: Definition, policy: Policy, observed: Observed
) -> Iterator[Step]:
    """Whether it knows the way vnetd cannot see."""
    version = asked.family.version
    for of, command in announce.for_the_router(policy, live, observed):
        if of == version:
            yield Step(at="router", text=f"must know the way to the guests; there: {command}")
    dev = announce.uplinks(policy.networks.get(live.name), live, observed).get(version)
    if dev is not None:
        yield Step(at="router", text=f"need not know: the host answers for guests on {dev}")


def _firewall(
    asked: Question,
    live: Definition,
    policy: Policy,
    observed: Observed,
    found: Diff,
    scene: Scene,
) -> Iterator[Step]:
    firewall = observed.filters
    if firewall is None:
        return
    networks = observed.libvirt.networks.values() if observed.libvirt else ()
    kept = [network.live for network in networks if network.live]
    ends = flows.Ends(destination=asked.destination, out=scene.out)
    right = foreign.with_libvirts(firewall, found.chains or {})
    ways = flows.of_network(policy.meant(live), right, kept, ends)
    yield from _libvirts(live, observed, found, ways)
    told: dict[str, dict[str, Step]] = {}
    for way in ways:
        name = f"{way.kind} (IPv{way.family.version})"
        of_name = told.setdefault(name, {})  # DNS by UDP and by TCP are one to a reader
        for item in flows.judge(right, way):
            if item.blocks:
                of_name.setdefault(str(item), _verdict(name, way, item, right))
    for name, verdicts in told.items():
        yield from verdicts.values() or [Step(at="firewall", text=f"{name}: nothing stops it")]


def _verdict(name: str, way: flows.Flow, item: Decision, firewall: Firewall) -> Step:
    place, rule = item.place, item.rule.text if item.rule else f"policy {item.verdict}"
    cause = firewall.origins.get((place, item.rule.text if item.rule else ""))
    owner = "libvirt" if foreign.is_ours(place) else foreign.owner(place, firewall)
    may = "" if item.certain else "may be "
    taken = _takes_frames(way, item)
    return Step(
        at="firewall",
        word=Word.BLOCKED if item.certain else Word.MAYBE,
        text=f"{name}: {may}{_past(item)} by {item} ({owner})"
        + (f", as {taken} is 1" if taken else ""),
        cure=_cure(item, owner) + (f"; or {taken}=0" if taken else "") if item.certain else "",
        hook=item.hook.value,
        table=f"{place.family} {place.table}",
        chain=place.chain,
        rule=rule,
        process=str(cause or ""),
    )


def _takes_frames(way: flows.Flow, item: Decision) -> str:
    """The sysctl by which frames between ports of one bridge come to hooks of IP at all."""
    if way.kind is not flows.Kind.PEERS or item.place.family not in ("ip", "ip6", "inet"):
        return ""
    return f"bridge-nf-call-{'iptables' if way.family is Family.IPV4 else 'ip6tables'}"


def _past(item: Decision) -> str:
    return "rejected" if item.verdict == "reject" else "dropped"


def _cure(item: Decision, owner: str) -> str:
    match owner:
        case "docker":
            return 'coexist = ["docker"], or an accept in DOCKER-USER'
        case "ufw":
            return 'coexist = ["ufw"], or: ufw route allow'
        case "firewalld":
            return 'coexist = ["firewalld"], or: firewall-cmd --zone=libvirt --change-interface'
        case _:
            what = "change the policy" if item.rule is None else "remove the rule"
            return f"{what}, or accept the network's traffic before it"


def _libvirts(
    live: Definition, observed: Observed, found: Diff, ways: Iterable[flows.Flow]
) -> Iterator[Step]:
    """libvirt's own rules: what is missing stops guests only if something then does."""
    firewall = observed.filters
    assert firewall is not None, "asked for with a firewall only"
    right = foreign.with_libvirts(firewall, found.chains or {})
    now = {str(item) for way in ways for item in flows.judge(firewall, way) if _stops(item)}
    then = {str(item) for way in ways for item in flows.judge(right, way) if _stops(item)}
    flaws = [x for x in found.drift if isinstance(x, rules.RulesDiffer) and x.network == live.name]
    for item in flaws:
        translation = item.chain.table == "nat" and live.mode is Mode.NAT
        stops = translation or (item.chain.table == "filter" and bool(now - then))
        yield Step(
            at="libvirt's rules",
            word=Word.BLOCKED if stops else Word.MAYBE,
            text=str(item) + (": guests' packets leave untranslated" if translation else ""),
            cure="vnetctl reconcile" if stops else "",
            table=f"{item.chain.family} {item.chain.table}",
            chain=item.chain.name,
        )
    dead = list(_dead_rules(live, firewall))
    for rule in dead:
        wrong = f"libvirt's rule is bound to an interface that is gone: {rule.text}"
        cure = f"restart libvirt's network daemon, or the network: {_restart(live.name)}"
        yield Step(
            at="libvirt's rules",
            word=Word.BLOCKED,
            text=wrong,
            cure=cure,
            table="libvirt_network",
            rule=rule.text,
        )
    world = observed.firewall.world if observed.firewall else World.NONE
    if not flaws and not dead and live.mode.has_rules and world is World.IPTABLES_NFT:
        yield Step(at="libvirt's rules", text="all are there, in order")


def _stops(item: Decision) -> bool:
    return item.blocks and item.certain


def _dead_rules(live: Definition, firewall: Firewall) -> Iterator[Rule]:
    """The nftables backend binds to interface indexes, which a new bridge does not have."""
    subnets = {network_span(address.network) for address in live.addresses}
    for chain in firewall.chains.values():
        if chain.place.table != "libvirt_network":
            continue
        for rule in chain.rules:
            matches = [item for item in rule.matches if isinstance(item, Match)]
            own = any(isinstance(m.values, tuple) and subnets & set(m.values) for m in matches)
            links = [m for m in matches if m.field in (Field.IIF, Field.OIF)]
            names = {str(name) for m in links for name in m.values}
            if own and any(name.startswith("#") for name in names):
                yield rule


def _blocked(at: str, text: str, cure: str) -> Step:
    return Step(at=at, word=Word.BLOCKED, text=text, cure=cure)


def _start(network: str) -> str:
    return f"virsh net-start {network}"


def _restart(network: str) -> str:
    return f"virsh net-destroy {network}; virsh net-start {network}"
