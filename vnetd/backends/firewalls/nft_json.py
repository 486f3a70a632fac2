"""nft's JSON of a ruleset → chains of the model. Pure.

Written for what nft 1.0.6 prints, which is not always what it was given: a set of wildcards comes
out as empty ranges, and what iptables-nft wrote as "xt" without its contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

from vnetd.core.packets.firewall import (
    UNTOLD,
    Base,
    Field,
    FilterChain,
    Hook,
    Jump,
    Match,
    Place,
    Rule,
    Span,
    Tool,
    Unknown,
    Verdict,
    address_span,
    network_span,
)

_HOOKS = {hook.value: hook for hook in Hook}
_META = {
    "iif": Field.IIF,
    "iifname": Field.IIF,
    "oif": Field.OIF,
    "oifname": Field.OIF,
    "l4proto": Field.PROTOCOL,
    "nfproto": Field.FAMILY,
    "protocol": Field.FAMILY,
}
_PAYLOAD = {
    "saddr": Field.SOURCE,
    "daddr": Field.DESTINATION,
    "sport": Field.SOURCE_PORT,
    "dport": Field.DESTINATION_PORT,
    "protocol": Field.PROTOCOL,
    "nexthdr": Field.PROTOCOL,
}
# nft says the link's name, or the bare number of one that is gone: nothing comes from there.
_BY_INDEX = ({"meta": {"key": "iif"}}, {"meta": {"key": "oif"}})
_ADDRESSES = {Field.SOURCE, Field.DESTINATION}
_PORTS = {Field.SOURCE_PORT, Field.DESTINATION_PORT}
_NAMES = {"ipv4": "ip", "ipv6": "ip6", "icmpv6": "ipv6-icmp", "ipv6-icmp": "ipv6-icmp"}
# Statements that let the packet go on to the next one.
_PASSING = {
    "counter", "log", "mangle", "notrack", "ct helper", "ct timeout", "ct expectation", "dup",
    "set", "map", "flow", "meta", "ct", "quota", "last", "tproxy", "synproxy", "secmark",
}  # fmt: skip
_TRANSLATING = {"masquerade", "snat", "dnat", "redirect"}
_GUESSED = {"limit", "meter", "ct count", "quota", "xt"}


class _Odd(Exception):
    """A value that this reader has no word for."""


@dataclass(frozen=True, slots=True)
class _Sets:
    """Elements of the named sets and maps of a ruleset."""

    elements: Mapping[tuple[str, str, str], Sequence[Any]]

    def find(self, family: str, table: str, name: str) -> Sequence[Any]:
        found = self.elements.get((family, table, name))
        if found is None:
            raise _Odd(name)
        return found


def parse(text: str) -> dict[Place, FilterChain]:
    """Raises ValueError for what is no ruleset."""
    items = json.loads(text)["nftables"] if text.strip() else []
    elements, filling = {}, set()
    for item in items:
        for kind in ("set", "map"):
            if kind in item:
                found = item[kind]
                key = found["family"], found["table"], found["name"]
                elements[key] = found.get("elem", [])
                if "dynamic" in found.get("flags", ()) or "timeout" in found.get("flags", ()):
                    filling.add(key)
    sets = _Sets({key: value for key, value in elements.items() if key not in filling})
    chains: dict[Place, FilterChain] = {}
    rules: dict[Place, list[Rule]] = {}
    for item in items:
        if "chain" in item:
            chain = item["chain"]
            place = Place(Tool.NFT, chain["family"], chain["table"], chain["name"])
            chains[place] = FilterChain(place, base=_base(chain))
        elif "rule" in item:
            rule = item["rule"]
            place = Place(Tool.NFT, rule["family"], rule["table"], rule["chain"])
            rules.setdefault(place, []).extend(_rules(rule, sets))
    return {
        place: replace(chain, rules=tuple(rules.get(place, ()))) for place, chain in chains.items()
    }


def devices(text: str) -> dict[Place, frozenset[str]]:
    """Of ingress chains, from nft's list of chains: its JSON leaves them out."""
    found, table, chain = {}, ["", ""], ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = words[1:3]
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif " device" in line and words[:1] == ["type"]:
            names = line.partition(" device")[2].partition(" priority ")[0].lstrip("s= ")
            listed = names.replace('"', "").strip("{ }").split(",")
            place = Place(Tool.NFT, table[0], table[1], chain)
            found[place] = frozenset(name.strip() for name in listed)
    return found


def _base(chain: Mapping[str, Any]) -> Base | None:
    hook = _HOOKS.get(chain.get("hook", ""))
    if hook is None:
        return None
    devices = chain.get("dev", ())
    named = frozenset([devices] if isinstance(devices, str) else devices)
    if hook is Hook.INGRESS and not named:
        named = frozenset({UNTOLD})
    policy = Verdict.DROP if chain.get("policy") == "drop" else Verdict.ACCEPT
    return Base(hook, int(chain["prio"]), policy, chain["type"], named)


def _rules(rule: Mapping[str, Any], sets: _Sets) -> Iterator[Rule]:
    """One, or with a verdict map one for each of its elements: at most one of them can hit."""
    comment = rule.get("comment", "")
    matches: list[Match | Unknown] = []
    for part in rule["expr"]:
        ((kind, body),) = part.items()
        if kind == "match":
            matches += _matches(rule, body["left"], body["op"], body["right"], sets)
        elif kind == "vmap":
            for extra, verdict in _elements(rule, body, sets):
                yield Rule(_text(rule), verdict, (*matches, *extra), comment)
            return
        elif kind in _TRANSLATING:
            yield Rule(_text(rule), Verdict.ACCEPT, tuple(matches), comment)
            return
        elif kind == "xt" and (body or {}).get("type") == "target":
            verdict = {"REJECT": Verdict.REJECT, "MASQUERADE": Verdict.ACCEPT}.get(body["name"])
            if verdict is not None:
                yield Rule(_text(rule), verdict, tuple(matches), comment)
                return
        elif kind in _GUESSED:
            matches.append(Unknown(kind))
        elif kind == "queue":
            # A program decides, and may drop.
            yield Rule(_text(rule), Verdict.DROP, (*matches, Unknown(kind)), comment)
            yield Rule(_text(rule), Verdict.ACCEPT, tuple(matches), comment)
            return
        elif kind not in _PASSING:
            yield Rule(_text(rule), _verdict(part), tuple(matches), comment)
            return


def _verdict(part: Mapping[str, Any]) -> Verdict | Jump | None:
    ((kind, body),) = part.items()
    if kind in ("jump", "goto"):
        return Jump(body["target"], goto=kind == "goto")
    try:
        return Verdict(kind)
    except ValueError:
        return None


def _elements(
    rule: Mapping[str, Any], vmap: Mapping[str, Any], sets: _Sets
) -> Iterator[tuple[list[Match | Unknown], Verdict | Jump | None]]:
    data = vmap["data"]
    try:
        if isinstance(data, str):
            elements = sets.find(rule["family"], rule["table"], data.removeprefix("@"))
        else:
            elements = data["set"]
    except _Odd:
        yield [Unknown("verdict map")], Verdict.DROP
        return
    for key, verdict in elements:
        if isinstance(key, dict) and "elem" in key:
            key = key["elem"]["val"]
        yield _matches(rule, vmap["key"], "==", key, sets), _verdict(verdict)


def _matches(
    rule: Mapping[str, Any], left: Any, op: str, right: Any, sets: _Sets
) -> list[Match | Unknown]:
    if isinstance(left, dict) and "concat" in left and isinstance(right, dict):
        values = right.get("concat") or _only(right)
        if values is not None and op in ("==", "in"):
            pairs = zip(left["concat"], values, strict=False)
            return [item for one, two in pairs for item in _matches(rule, one, "==", two, sets)]
        return [Unknown("concatenation")]
    field, implied = _field(left)
    if field is None:
        return [*implied, Unknown(_said(left))]
    try:
        if isinstance(right, str) and right.startswith("@"):
            right = {"set": sets.find(rule["family"], rule["table"], right[1:])}
        values = _values(field, right)
        if left in _BY_INDEX:
            values = frozenset(f"#{name}" if str(name).isdigit() else name for name in values)
    except (_Odd, ValueError, KeyError, TypeError):
        return [*implied, Unknown(_said(left))]
    if op not in ("==", "!=", "in"):
        return [*implied, Unknown(_said(left))]
    return [*implied, Match(field, values, negated=op == "!=")]


def _only(right: Mapping[str, Any]) -> Sequence[Any] | None:
    """The concatenation of a set of one."""
    elements = right.get("set", ())
    return elements[0].get("concat") if len(elements) == 1 else None


def _field(left: Any) -> tuple[Field | None, list[Match | Unknown]]:
    """The field, and what the expression says beside it: tcp dport is tcp as well."""
    match left:
        case {"meta": {"key": str(key)}}:
            return _META.get(key), []
        case {"ct": {"key": "state"}}:
            return Field.STATE, []
        case {"ct": {"key": "status"}}:
            return Field.STATUS, []
        case {"fib": {"result": "type", "flags": ["daddr", *_]}}:
            return Field.DESTINATION_TYPE, []
        case {"payload": {"protocol": str(protocol), "field": str(key)}}:
            field = _PAYLOAD.get(key)
            if protocol in ("ip", "ip6"):
                return field, [Match(Field.FAMILY, frozenset({protocol}))]
            if protocol == "th":
                return field, []
            if protocol in ("tcp", "udp", "sctp", "dccp", "udplite", "icmp", "icmpv6"):
                name = _NAMES.get(protocol, protocol)
                return (field if field in _PORTS else None), [
                    Match(Field.PROTOCOL, frozenset({name}))
                ]
        case _:
            pass
    return None, []


def _values(field: Field, right: Any) -> frozenset[str] | tuple[Span, ...]:
    if isinstance(right, dict) and "set" in right:
        items = right["set"] if isinstance(right["set"], list) else [right["set"]]
    elif isinstance(right, list):
        items = right
    else:
        items = [right]
    items = [i["elem"]["val"] if isinstance(i, dict) and "elem" in i else i for i in items]
    if field in _ADDRESSES:
        return tuple(_addresses(item) for item in items)
    if field in _PORTS:
        return tuple(_ports(item) for item in items)
    return frozenset(_word(field, item) for item in items)


def _addresses(item: Any) -> Span:
    match item:
        case str():
            return address_span(ip_address(item))
        case {"prefix": {"addr": addr, "len": length}}:
            return network_span(ip_network(f"{addr}/{length}", strict=False))
        case {"range": [low, high]}:
            return address_span(ip_address(low), ip_address(high))
        case _:
            raise _Odd(item)


def _ports(item: Any) -> Span:
    match item:
        case int():
            return Span(item, item)
        case {"range": [int(low), int(high)]}:
            return Span(low, high)
        case _:
            raise _Odd(item)


def _word(field: Field, item: Any) -> str:
    if not isinstance(item, str) or not item:
        raise _Odd(item)
    if field is Field.FAMILY and item not in ("ipv4", "ipv6", "ip", "ip6"):
        raise _Odd(item)
    return _NAMES.get(item, item)


def _said(left: Any) -> str:
    match left:
        case {"meta": {"key": str(key)}} | {"ct": {"key": str(key)}}:
            return key
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case _:
            pass
    return str(next(iter(left))) if isinstance(left, dict) else str(left)


def _text(rule: Mapping[str, Any]) -> str:
    """As nft lists it, near enough to find it there."""
    words = [_part(part) for part in rule["expr"]]
    if rule.get("comment"):
        words.append(f'comment "{rule["comment"]}"')
    return " ".join(word for word in words if word)


def _part(part: Mapping[str, Any]) -> str:
    ((kind, body),) = part.items()
    match kind:
        case "match":
            op = "!= " if body["op"] == "!=" else ""
            return f"{_left(body['left'])} {op}{_right(body['right'])}"
        case "vmap":
            return f"{_left(body['key'])} vmap {_right(body['data'])}"
        case "jump" | "goto":
            return f"{kind} {body['target']}"
        case "counter":
            return ""
        case "limit":
            return f"limit rate {body.get('rate')}/{body.get('per')}"
        case _:
            pass
    return kind if kind != "xt" else str((body or {}).get("name", "xt"))


def _left(left: Any) -> str:
    match left:
        case {"meta": {"key": str(key)}}:
            return key if key.startswith(("iif", "oif")) else f"meta {key}"
        case {"ct": {"key": str(key)}}:
            return f"ct {key}"
        case {"concat": parts}:
            return " . ".join(_left(part) for part in parts)
        case _:
            return _said(left)


def _right(right: Any) -> str:
    match right:
        case {"set": items} if isinstance(items, list):
            return "{ " + ", ".join(_right(item) for item in items) + " }"
        case {"prefix": {"addr": addr, "len": length}}:
            return f"{addr}/{length}"
        case {"range": [low, high]}:
            return f"{low}-{high}"
        case {"concat": parts}:
            return " . ".join(_right(part) for part in parts)
        case [key, dict(verdict)]:
            return f"{_right(key)} : {_part(verdict)}"
        case list():
            return ",".join(_right(item) for item in right)
        case _:
            return str(right)
