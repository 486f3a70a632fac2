"""One rule as iptables-save prints it → the model's. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network

from vnetd.core.packets.firewall import (
    Field,
    Jump,
    Match,
    Rule,
    Span,
    Unknown,
    Verdict,
    address_span,
    network_span,
)

_TARGETS = {
    "ACCEPT": Verdict.ACCEPT,
    "DROP": Verdict.DROP,
    "REJECT": Verdict.REJECT,
    "RETURN": Verdict.RETURN,
    "MASQUERADE": Verdict.ACCEPT,
    "SNAT": Verdict.ACCEPT,
    "DNAT": Verdict.ACCEPT,
    "REDIRECT": Verdict.ACCEPT,
    "NETMAP": Verdict.ACCEPT,
}
# These change or count something and let the packet go on.
_PASSING = {
    "LOG", "MARK", "CONNMARK", "CT", "NFLOG", "TCPMSS", "CHECKSUM", "TRACE", "SET", "AUDIT",
    "NOTRACK", "DSCP", "TOS", "CLASSIFY", "SECMARK", "CONNSECMARK", "TEE", "TTL", "HL",
    "IDLETIMER", "HMARK", "TPROXY", "TCPOPTSTRIP", "SYNPROXY", "ECN", "RATEEST", "ULOG",
}  # fmt: skip
# Options whose one value is somebody's own text, which may begin with anything.
_TEXTS = {"--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string"}
_PROTOCOLS = {"icmpv6": "ipv6-icmp", "ipv6-icmp": "ipv6-icmp", "58": "ipv6-icmp"}


@lru_cache(maxsize=1 << 14)  # one that changes among thousands costs no more than itself
def rules(text: str) -> tuple[Rule, ...]:
    """One; or two where a program decides, which may drop."""
    matches: list[Match | Unknown] = []
    comment, queue = "", False
    verdict: Verdict | Jump | None = None
    for negated, option, values in options(text):
        value = values[0] if values else ""
        if option == "-j":
            if value in ("QUEUE", "NFQUEUE"):
                queue = True
            elif value in _TARGETS:
                verdict = _TARGETS[value]
            else:
                verdict = None if value in _PASSING else Jump(value)
            break  # what follows belongs to the target
        if option == "-g":
            verdict = Jump(value, goto=True)
            break
        if option == "--comment":
            comment = value
        elif option != "-m":
            matches.append(_match(option, values, negated=negated))
    if queue:
        dropped = Rule(text, Verdict.DROP, (*matches, Unknown("queue")), comment)
        return dropped, Rule(text, Verdict.ACCEPT, tuple(matches), comment)
    return (Rule(text, verdict, tuple(matches), comment),)


def options(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """(negated, option, its values)."""
    quoted = any(mark in text for mark in "\"'\\")
    words = shlex.split(text) if quoted else text.split()
    negated, at = False, 0
    while at < len(words):
        if words[at] == "!":
            negated, at = True, at + 1
            continue
        option = words[at]
        values: list[str] = []
        at += 1
        most = 1 if option in _TEXTS else len(words)
        while at < len(words) and len(values) < most:
            if option not in _TEXTS and words[at].startswith(("-", "!")):
                break
            values.append(words[at])
            at += 1
        yield negated, option, values
        negated = False


def _match(option: str, values: Sequence[str], *, negated: bool) -> Match | Unknown:
    value = values[0] if values else ""
    try:
        match option:
            case "-i":
                return Match(Field.IIF, _interface(value), negated)
            case "-o":
                return Match(Field.OIF, _interface(value), negated)
            case "-s":
                return Match(Field.SOURCE, (network_span(ip_network(value)),), negated)
            case "-d":
                return Match(Field.DESTINATION, (network_span(ip_network(value)),), negated)
            case "--src-range":
                return Match(Field.SOURCE, (_range(value),), negated)
            case "--dst-range":
                return Match(Field.DESTINATION, (_range(value),), negated)
            case "-p":
                return Match(Field.PROTOCOL, frozenset({_PROTOCOLS.get(value, value)}), negated)
            case "--dport" | "--dports" | "--destination-ports":
                return Match(Field.DESTINATION_PORT, _ports(value), negated)
            case "--sport" | "--sports":
                return Match(Field.SOURCE_PORT, _ports(value), negated)
            case "--ctstate" | "--state":
                return Match(Field.STATE, frozenset(value.lower().split(",")), negated)
            case "--ctstatus":
                return Match(Field.STATUS, frozenset(value.lower().split(",")), negated)
            case "--dst-type":
                return Match(Field.DESTINATION_TYPE, frozenset(value.lower().split(",")), negated)
            case "--physdev-is-bridged":
                return Match(Field.BRIDGED, frozenset({"yes"}), negated)
            case _:
                pass
    except ValueError:
        pass  # a form that this reader does not know
    return Unknown(" ".join([option, *values]))


def _interface(name: str) -> frozenset[str]:
    return frozenset({f"{name[:-1]}*" if name.endswith("+") else name})


def _range(text: str) -> Span:
    low, _, high = text.partition("-")
    return address_span(ip_address(low), ip_address(high))


def _ports(text: str) -> tuple[Span, ...]:
    found = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        found.append(Span(int(low or 0), int(high or 65535) if colon else int(low)))
    return tuple(found)
