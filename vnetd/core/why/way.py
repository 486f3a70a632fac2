"""A guest's way to its destination, hop by hop.

Where one thing breaks others, only the first is told: a bridge that is gone has no address either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from vnetd.core.diff import Diff
from vnetd.core.keep import announce, bridges
from vnetd.core.model import Definition, Family, IfName, Link, Mode, Observed, Tap
from vnetd.core.policy import Policy
from vnetd.core.why import firewall
from vnetd.core.why.question import Answer, Question, Scene, Step, Word, blocked, restart
from vnetd.core.wording import few


def answer(
    asked: Question, policy: Policy, observed: Observed, found: Diff, scene: Scene
) -> Answer:
    return Answer(asked, tuple(_steps(asked, policy, observed, found, scene)), scene.gateway)


def _steps(
    asked: Question, policy: Policy, observed: Observed, found: Diff, scene: Scene
) -> Iterator[Step]:
    live, links = asked.live, observed.links or {}
    if live is None:
        yield blocked("network", f"{asked.network} is not active", _start(asked.network))
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
            yield blocked("route", wrong, 'give it mode = "nat" or "route"')
    yield from firewall.steps(asked, live, policy, observed, found, scene)


def _bridge(live: Definition, bridge: IfName, links: Mapping[IfName, Link]) -> Step:
    link = links.get(bridge)
    own = live.mode.has_own_bridge
    if link is None:
        cure = f"restart the network: {restart(live.name)}" if own else "make the bridge"
        return blocked("bridge", f"{bridge} does not exist", cure)
    if not link.up:
        return blocked("bridge", f"{bridge} is down", f"ip link set {bridge} up")
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
        return blocked("tap", f"{name} does not exist", f"restart the guest {tap.domain}")
    if link.master != bridge:
        cure = f"ip link set {tap.device} master {bridge}"
        return blocked("tap", f"{name} is not on bridge {bridge}", cure)
    if not link.up:
        return blocked("tap", f"{name} is down", f"ip link set {tap.device} up")
    return Step(at="tap", text=f"{name} is on bridge {bridge}")


def _addresses(live: Definition, missing: Iterable[bridges.AddressMissing]) -> Iterator[Step]:
    gone = {item.address for item in missing}
    for address in live.addresses:
        if address in gone:
            cure = f"ip address add {address} dev {live.bridge}"
            yield blocked("address", f"{address} is missing on {live.bridge}", cure)
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
        yield blocked("dnsmasq", f"dnsmasq of {live.name} {wrong}", cure)
        return
    deaf = [port for port in ports if port not in scene.listening]
    if deaf:
        wrong = f"dnsmasq[{scene.dnsmasq}] does not listen on UDP {', '.join(map(str, deaf))}"
        yield blocked("dnsmasq", wrong, f"restart the network: {restart(live.name)}")
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
        yield blocked("route", f"the host has no route to {to}: {scene.no_route}{hint}", cure)
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
        yield blocked("forwarding", f"{off[0]} is 0: the host forwards nothing there", cure)
    else:
        yield Step(at="forwarding", text="the host forwards")


def _uplink(live: Definition, out: IfName, links: Mapping[IfName, Link], scene: Scene) -> Step:
    link = links.get(out)
    if link is not None and not link.up:
        return blocked("uplink", f"{out} is down", f"ip link set {out} up")
    if scene.carriers.get(out) is False:
        return blocked("uplink", f"{out} has no carrier", "look at its cable, or its other end")
    if live.forward_dev is not None and live.forward_dev != out:
        wrong = f"the route leads to {out}, and the network forwards to {live.forward_dev} only"
        return blocked("uplink", wrong, f"route it by {live.forward_dev}")
    return Step(at="uplink", text=f"{out} is up")


def _way_back(bridge: IfName, scene: Scene) -> Iterator[Step]:
    filters = (scene.sysctls.get(f"net/ipv4/conf/{dev}/rp_filter", "0") for dev in ("all", bridge))
    strict = max(filters) == "1"
    for part, dev in sorted(scene.elsewhere.items()):
        cure = f"ip route delete {part} dev {dev}"
        if strict:
            wrong = f"rp_filter of {bridge} is strict, and the way back to {part} is {dev}"
            yield blocked("way back", wrong, f"{cure}; or rp_filter=2")
        else:
            yield blocked("way back", f"answers to {part} leave by {dev}", cure)
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


def _start(network: str) -> str:
    return f"virsh net-start {network}"
