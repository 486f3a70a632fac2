"""The guard's rules → nf_tables messages, and its dumps back. Pure.

Not by nft: a table's owner is the socket that made it, and nft's ends with each command.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import assert_never

from vnetd.backends.firewalls import nf_messages as nf
from vnetd.backends.netlink import attributes, encoded
from vnetd.core.rules.guard import (
    CHAINS,
    PROTOCOLS,
    TABLE,
    Key,
    Match,
    Nat,
    Rule,
    Translation,
    Verdict,
)

# Registers of 16 bytes: one to match in, four for the ends of ranges.
_REG = 1
_ADDRESSES, _PORTS = (2, 3), (4, 1)
_EQ, _NEQ = 0, 1
_META = {Key.IIFNAME: 6, Key.OIFNAME: 7, Key.FAMILY: 15, Key.PROTOCOL: 16}
_NFPROTO = {"ipv4": 2, "ipv6": 10}
# Base header (1 network, 2 transport), offset, length
_PAYLOAD = {
    Key.IP_SADDR: (1, 12, 4),
    Key.IP_DADDR: (1, 16, 4),
    Key.IP6_SADDR: (1, 8, 16),
    Key.IP6_DADDR: (1, 24, 16),
    Key.SPORT: (2, 0, 2),
    Key.DPORT: (2, 2, 2),
}
# linux/netfilter/nf_conntrack_common.h: the states as bits, and IPS_DST_NAT
_CT = {Key.CT_STATE: 0, Key.CT_STATUS: 2}
_CT_BITS = {"established": 2, "related": 4, "dnat": 1 << 5}
_FIB_DADDR, _FIB_ADDRTYPE, _RTN_LOCAL = 2, 3, 2
_ACCEPT, _RETURN = 1, -5
_REJECT_ICMPX, _PORT_UNREACHABLE = 2, 1
_IFNAMSIZ = 16
# libnftnl's user data of a rule: type, length, value. nft shows a comment, and skips what it does
# not know.
_COMMENT, _DIGEST = 0, 200
_MOST_COMMENT = 100


def rule_of(body: bytes) -> tuple[str, str]:
    """Of a rule's dump: its chain and its digest; "" if it is none of ours."""
    found = attributes(body[4:])
    chain = found.get(2, b"").rstrip(b"\0").decode(errors="replace")
    data, at = found.get(7, b""), 0
    while at + 2 <= len(data):
        kind, length = data[at], data[at + 1]
        if kind == _DIGEST:
            return chain, data[at + 2 : at + 2 + length].decode(errors="replace")
        at += 2 + length
    return chain, ""


def replace_chains(
    wanted: Mapping[str, Sequence[Rule]], present: Mapping[str, object]
) -> Iterable[bytes]:
    """Empty and fill these chains; one without rules goes."""
    for name, rules in wanted.items():
        if name in present:
            yield nf.delete_rules(nf.INET, TABLE, name)
            if not rules:
                yield nf.delete_chain(nf.INET, TABLE, name)
        elif rules:
            chain = CHAINS[name]
            base = nf.base(chain.hook, chain.priority, chain.type)
            yield nf.make_chain(nf.INET, TABLE, name, base)
        for rule in rules:
            yield nf.add_rule(nf.INET, TABLE, name, _rule(rule))


def _rule(rule: Rule) -> bytes:
    comment = rule.network.encode()[:_MOST_COMMENT] + b"\0"
    digest = rule.digest.encode()
    user = bytes((_COMMENT, len(comment))) + comment if rule.network else b""
    user += bytes((_DIGEST, len(digest))) + digest
    return nf.rule(b"".join(_expressions(rule)), user)


# -- expressions


def _expressions(rule: Rule) -> Iterable[bytes]:
    for match in rule.matches:
        yield from _match(match)
    match rule.verdict:
        case Verdict.ACCEPT:
            yield _verdict(_ACCEPT)
        case Verdict.RETURN:
            yield _verdict(_RETURN)
        case Verdict.REJECT:
            code = encoded(1, _u32(_REJECT_ICMPX)) + encoded(2, bytes((_PORT_UNREACHABLE,)))
            yield _expression("reject", code)
        case Translation() as translation:
            yield from _translation(translation)
        case _:
            assert_never(rule.verdict)


def _match(item: Match) -> Iterable[bytes]:
    match item.key:
        case Key.IIFNAME | Key.OIFNAME:
            yield _meta(item.key)
            name = item.value.encode()
            prefix = name[:-1] if name.endswith(b"*") else name.ljust(_IFNAMSIZ, b"\0")
            yield _compare(item, prefix)
        case Key.FAMILY:
            yield _meta(item.key)
            yield _compare(item, bytes((_NFPROTO[item.value],)))
        case Key.PROTOCOL:
            yield _meta(item.key)
            yield _compare(item, bytes((PROTOCOLS[item.value],)))
        case Key.IP_SADDR | Key.IP_DADDR | Key.IP6_SADDR | Key.IP6_DADDR:
            yield from _address(item)
        case Key.SPORT | Key.DPORT:
            yield _payload(item.key)
            first, _, last = item.value.partition("-")
            low, high = (struct.pack(">H", int(port)) for port in (first, last or first))
            yield _compare(item, low) if low == high else _range(item, low, high)
        case Key.CT_STATE | Key.CT_STATUS:
            yield _expression("ct", encoded(1, _u32(_REG)) + encoded(2, _u32(_CT[item.key])))
            bits = sum(_CT_BITS[word] for word in item.value.split(","))
            yield _masked(struct.pack("=I", bits))
            yield _compare(Match(item.key, "", negated=not item.negated), bytes(4))
        case Key.DADDR_TYPE:
            assert item.value == "local", item
            look = encoded(1, _u32(_REG)) + encoded(2, _u32(_FIB_ADDRTYPE))
            yield _expression("fib", look + encoded(3, _u32(_FIB_DADDR)))
            yield _compare(item, struct.pack("=I", _RTN_LOCAL))
        case _:
            assert_never(item.key)


def _address(item: Match) -> Iterable[bytes]:
    network = ip_network(item.value)
    yield _meta(Key.FAMILY)
    yield _compare(Match(Key.FAMILY, ""), bytes((_NFPROTO[f"ipv{network.version}"],)))
    yield _payload(item.key)
    if network.prefixlen < network.max_prefixlen:
        yield _masked(network.netmask.packed)
    yield _compare(item, network.network_address.packed)


def _translation(item: Translation) -> Iterable[bytes]:
    """The ends of ranges into registers, then the translation with these."""
    arguments = b""
    if item.addresses:
        low, high = (ip_address(address) for address in item.addresses)
        arguments += encoded(1, _u32({Nat.SNAT: 0, Nat.DNAT: 1}[item.nat]))
        arguments += encoded(2, _u32(_NFPROTO[f"ipv{low.version}"]))
        for place, register, address in _ends(3, _ADDRESSES, low.packed, high.packed):
            yield _load(register, address)
            arguments += encoded(place, _u32(register))
    if item.ports:
        packed = (struct.pack(">H", port) for port in item.ports)
        for place, register, port in _ends(2 if not item.addresses else 5, _PORTS, *packed):
            yield _load(register, port)
            arguments += encoded(place, _u32(register))
    yield _expression("masq" if item.nat is Nat.MASQUERADE else "nat", arguments)


def _ends(
    place: int, registers: tuple[int, int], low: bytes, high: bytes
) -> Iterable[tuple[int, int, bytes]]:
    """(attribute, register, value) of each end; one is enough where they are the same."""
    yield place, registers[0], low
    if high != low:
        yield place + 1, registers[1], high


def _meta(key: Key) -> bytes:
    return _expression("meta", encoded(1, _u32(_REG)) + encoded(2, _u32(_META[key])))


def _payload(key: Key) -> bytes:
    base, offset, length = _PAYLOAD[key]
    values = enumerate((_REG, base, offset, length), 1)
    return _expression("payload", b"".join(encoded(kind, _u32(value)) for kind, value in values))


def _masked(mask: bytes) -> bytes:
    values = encoded(1, _u32(_REG)) + encoded(2, _u32(_REG)) + encoded(3, _u32(len(mask)))
    return _expression("bitwise", values + _data(4, mask) + _data(5, bytes(len(mask))))


def _compare(item: Match, value: bytes) -> bytes:
    how = _NEQ if item.negated else _EQ
    return _expression("cmp", encoded(1, _u32(_REG)) + encoded(2, _u32(how)) + _data(3, value))


def _range(item: Match, low: bytes, high: bytes) -> bytes:
    how = _NEQ if item.negated else _EQ
    values = encoded(1, _u32(_REG)) + encoded(2, _u32(how)) + _data(3, low) + _data(4, high)
    return _expression("range", values)


def _load(register: int, value: bytes) -> bytes:
    return _expression("immediate", encoded(1, _u32(register)) + _data(2, value))


def _verdict(code: int) -> bytes:
    value = encoded(2, encoded(1, struct.pack(">i", code)), nested=True)
    return _expression("immediate", encoded(1, _u32(0)) + encoded(2, value, nested=True))


def _data(kind: int, value: bytes) -> bytes:
    return encoded(kind, encoded(1, value), nested=True)


def _expression(name: str, values: bytes) -> bytes:
    return encoded(1, encoded(1, _text(name)) + encoded(2, values, nested=True), nested=True)


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"
