"""What somebody has put in front of libvirt's iptables rules: accepts that let traffic through
which libvirt would reject, or that leave it without NAT.

The guard stands behind libvirt's rules and sees no verdict of theirs, so it must be told. Where a
rule says more than can be told (a set, a limit, a mark), that part is left out: the exception is
then wider than the rule, and costs protection rather than packets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from vnetd.core.model import Chain, Family, Ruleset
from vnetd.core.packets.iptables_text import options
from vnetd.core.rules.guard import DADDR, PROTOCOLS, SADDR, Key, Match, Matches

Own = Mapping[Chain, tuple[str, ...]]

_MOST_JUMPS = 16
_KEYS = {
    family: {
        "-i": Key.IIFNAME,
        "-o": Key.OIFNAME,
        "-s": SADDR[family],
        "-d": DADDR[family],
        "-p": Key.PROTOCOL,
        "--sport": Key.SPORT,
        "--dport": Key.DPORT,
    }
    for family in Family
}
_OF_FAMILY = frozenset((*SADDR.values(), *DADDR.values()))


def passed(ruleset: Ruleset, own: Own, bridges: Collection[str]) -> list[Matches]:
    """Forwarded traffic of these bridges that is accepted before libvirt's last word on it."""
    names = ("FORWARD", "LIBVIRT_FWX", "LIBVIRT_FWI", "LIBVIRT_FWO")
    return _in_front(ruleset, own, bridges, "filter", names)


def untranslated(ruleset: Ruleset, own: Own, bridges: Collection[str]) -> list[Matches]:
    """Traffic that is accepted before libvirt's NAT rules, and so leaves as it is."""
    return _in_front(ruleset, own, bridges, "nat", ("POSTROUTING", "LIBVIRT_PRT"))


def _in_front(
    ruleset: Ruleset, own: Own, bridges: Collection[str], table: str, names: Sequence[str]
) -> list[Matches]:
    """names: the chains on the way, to libvirt's last."""
    found: list[Matches] = []
    for family in Family:
        for name in names:
            found += _accepts(ruleset, own, Chain(family, table, name), names[-1])
    return [matches for matches in dict.fromkeys(found) if _concerns(matches, bridges)]


def _accepts(
    ruleset: Ruleset, own: Own, chain: Chain, stop: str, outer: Matches = (), depth: int = 0
) -> Iterator[Matches]:
    """Up to the jump to the chain stop. own: libvirt's rules, which are no exceptions."""
    libvirts = frozenset(own.get(chain, ()))
    for rule in ruleset.chains.get(chain, ()):
        target = _target(rule)
        if rule in libvirts:
            if target == stop:
                return
            continue
        inner = Chain(chain.family, chain.table, target)
        if target != "ACCEPT" and inner not in ruleset.chains:
            continue
        matches = _read(rule, chain.family)
        if matches is None:
            continue
        if target == "ACCEPT":
            yield _of_family((*outer, *matches), chain.family)
        elif depth < _MOST_JUMPS:
            yield from _accepts(ruleset, own, inner, stop, (*outer, *matches), depth + 1)


def _target(rule: str) -> str:
    return next((v[0] for _, option, v in options(rule) if option in ("-j", "-g") and v), "")


def _read(rule: str, family: Family) -> Matches | None:
    """What can be told of it. None: it accepts no flow's first packet, and all others pass anyway,
    as do those that somebody has translated.
    """
    found: list[Match] = []
    for negated, option, values in options(rule):
        value = values[0] if values else ""
        if option in ("--ctstate", "--state") and not negated:
            if not set(value.split(",")) & {"NEW", "INVALID", "UNTRACKED"}:
                return None
        elif option in _KEYS[family]:
            found += _told(Match(_KEYS[family][option], _value(option, value), negated))
    with_ports = {m.value for m in found if m.key is Key.PROTOCOL and not m.negated}
    if not with_ports & {"tcp", "udp", "sctp"}:
        found = [m for m in found if m.key not in (Key.SPORT, Key.DPORT)]
    return tuple(found)


def _told(match: Match) -> list[Match]:
    anything = match.value == "*" if match.key in (Key.IIFNAME, Key.OIFNAME) else False
    unknown = match.key is Key.PROTOCOL and match.value not in PROTOCOLS
    return [] if anything or unknown else [match]


def _value(word: str, value: str) -> str:
    if word in ("-i", "-o"):
        return f"{value[:-1]}*" if value.endswith("+") else value
    if word in ("--sport", "--dport"):
        return value.replace(":", "-")
    return value.removesuffix("/32").removesuffix("/128") if word in ("-s", "-d") else value


def _of_family(matches: Matches, family: Family) -> Matches:
    """A match that says nothing of its family would hold for both."""
    if any(match.key in _OF_FAMILY for match in matches):
        return matches
    return (Match(Key.FAMILY, f"ipv{family.version}"), *matches)


def _concerns(matches: Matches, bridges: Collection[str]) -> bool:
    """Whether traffic into or out of one of the bridges can meet it."""
    return any(
        _can_be(matches, key, bridge) for bridge in bridges for key in (Key.IIFNAME, Key.OIFNAME)
    )


def _can_be(matches: Matches, key: Key, name: str) -> bool:
    return all(match.negated is not _is(match.value, name) for match in matches if match.key is key)


def _is(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
