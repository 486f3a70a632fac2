"""The policy: TOML text in, a checked Policy out, or every mistake in it at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Interface, ip_address, ip_interface
from itertools import combinations
from typing import Any, TypeVar

import tomli

from vnetd.core.model import Address, DhcpHost, DhcpRange, HostAddress, IfName, Mode
from vnetd.core.toml_lines import Path, line_of, locate
from vnetd.errors import PolicyError, Problem


class Enforcement(StrEnum):
    ENFORCE = "enforce"
    OBSERVE = "observe"


class Unlisted(StrEnum):
    """What happens to libvirt networks that no policy names."""

    PROTECT = "protect"
    IGNORE = "ignore"


class Coexist(StrEnum):
    """Other firewall tools, in whose own places vnetd may let networks through."""

    DOCKER = "docker"
    UFW = "ufw"
    FIREWALLD = "firewalld"


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """One [networks.NAME]. None: the policy does not say, so it cannot drift."""

    name: str
    mode: Mode
    bridge: IfName | None = None
    autostart: bool = True
    addresses: tuple[Address, ...] = ()
    ranges: tuple[DhcpRange, ...] = ()
    hosts: tuple[DhcpHost, ...] = ()
    domain: str | None = None
    mac: str | None = None
    mtu: int | None = None
    stp: bool | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """present: there was a policy file. Without one vnetd removes nothing."""

    enforcement: Enforcement = Enforcement.ENFORCE
    unlisted: Unlisted = Unlisted.PROTECT
    resync: float = 300.0
    coexist: frozenset[Coexist] = frozenset(Coexist)
    networks: Mapping[str, NetworkPolicy] = field(default_factory=dict)
    present: bool = True


@dataclass(frozen=True, slots=True)
class PolicyText:
    file: str
    text: str


SUPPORTED_MODES = (Mode.NAT, Mode.ROUTE, Mode.ISOLATED, Mode.OPEN, Mode.BRIDGE)

_T = TypeVar("_T")
_Enum = TypeVar("_Enum", bound=StrEnum)
_DURATION = re.compile(r"(\d+)\s*(s|sec|min|h)")
_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DUID = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2})+")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
# The kernel takes nearly any bytes as an interface name; this is what every tool can handle.
_IFNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,14}")


def parse(texts: Sequence[PolicyText]) -> Policy:
    """The main file first, then its drop-ins: key by key, the later file wins.

    Raises PolicyError with all mistakes of all files.
    """
    problems: list[Problem] = []
    merged: dict[str, Any] = {}
    lines: dict[Path, tuple[str, int]] = {}
    for text in texts:
        try:
            document = tomli.loads(text.text)
        except tomli.TOMLDecodeError as error:
            wrong = str(error).partition(" (at ")[0]
            line = line_of(error)
            problems.append(
                Problem(text.file, line, "", f"not valid TOML: {wrong}", "correct it there")
            )
            continue
        _merge(merged, document)
        for path, line in locate(text.text).items():
            # A table is where it began; a key is where it was last set.
            if path not in lines or not isinstance(_value(document, path), dict):
                lines[path] = (text.file, line)
    if problems:
        raise PolicyError(problems)
    root = _Table(merged, (), lines, problems)
    policy = _policy(root)
    if problems:
        files = [text.file for text in texts]
        raise PolicyError(sorted(problems, key=lambda p: (files.index(p.file), p.line)))
    return policy


class _Table:
    """A table being read: hands out its keys checked, and notes what is wrong with them."""

    def __init__(
        self,
        values: Mapping[str, Any],
        path: Path,
        lines: Mapping[Path, tuple[str, int]],
        problems: list[Problem],
    ) -> None:
        self._values = values
        self._path = path
        self._lines = lines
        self._problems = problems
        self._known: list[str] = []

    def wrong(self, key: str | int | None, wrong: str, right: str) -> None:
        path = self._path if key is None else (*self._path, key)
        places = [place for place in self._lines if place[: len(path)] == path]
        places += [path[:n] for n in range(len(path), 0, -1) if path[:n] in self._lines]
        file, line = self._lines[places[0]]
        self._problems.append(Problem(file, line, dotted(path), wrong, right))

    def at(self, key: str) -> _Table:
        """The place of a key, to report what is wrong inside of it."""
        return _Table({}, (*self._path, key), self._lines, self._problems)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, kind: type[_T], right: str) -> _T | None:
        self._known.append(key)
        value = self._values.get(key)
        # bool is an int to Python, not to an admin
        if value is None:
            return None
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        self.wrong(key, f"{_shown(value)} is not {_KINDS[kind]}", right)
        return None

    def parsed(self, key: str, parser: Callable[[str], _T], right: str) -> _T | None:
        text = self.get(key, str, right)
        return None if text is None else self._parse(key, text, parser, right)

    def list(self, key: str, parser: Callable[[str], _T], right: str) -> tuple[_T, ...]:
        found = []
        place = self.at(key)
        for at, item in enumerate(self.get(key, list, f"write a list: [{right}]") or ()):
            if not isinstance(item, str):
                place.wrong(at, f"{_shown(item)} is not a text", f"write {right}")
            elif (value := place._parse(at, item, parser, f"write {right}")) is not None:
                found.append(value)
        return tuple(found)

    def enum(
        self,
        key: str,
        members: Sequence[_Enum],
        default: _Enum | None,
        *,
        elsewhere: Iterable[_Enum] = (),
    ) -> _Enum | None:
        """elsewhere: words that libvirt knows, but not this version of vnetd."""
        right = _one_of(members)
        text = self.get(key, str, right)
        if text is None:
            if default is None and key not in self:
                self.wrong(key, "is missing", right)
            return default
        for member in members:
            if text == member:
                return member
        near = _near(text, members)
        if text in list(elsewhere):
            self.wrong(key, f"{_shown(text)} is not kept by this version", right)
        else:
            right = f'do you mean "{near}"?' if near else right
            self.wrong(key, f"{_shown(text)} is not known", right)
        return default

    def table(self, key: str, right: str) -> _Table:
        values = self.get(key, dict, right) or {}
        return _Table(values, (*self._path, key), self._lines, self._problems)

    def tables(self, key: str, right: str) -> Iterable[_Table]:
        for at, item in enumerate(self.get(key, list, f"write a list: [{right}]") or ()):
            if isinstance(item, dict):
                yield _Table(item, (*self._path, key, at), self._lines, self._problems)
            else:
                self.at(key).wrong(at, f"{_shown(item)} is not a table", f"write {right}")

    def each_table(self, right: str) -> Iterable[tuple[str, _Table]]:
        for name in self._values:
            yield name, self.table(name, right)

    def close(self) -> None:
        """Report the keys that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                near = _near(key, self._known)
                right = f'do you mean "{near}"?' if near else "known are " + ", ".join(self._known)
                self.wrong(key, "is not a known key", right)

    def _parse(
        self, key: str | int, text: str, parser: Callable[[str], _T], right: str
    ) -> _T | None:
        try:
            return parser(text)
        except ValueError as error:
            wrong, _, better = str(error).partition("; ")
            self.wrong(key, f"{_shown(text)} {wrong}", better or right)
            return None


def _policy(root: _Table) -> Policy:
    general = root.table("vnetd", "write a table: [vnetd]")
    enforcement = general.enum("mode", list(Enforcement), Enforcement.ENFORCE)
    unlisted = general.enum("unlisted", list(Unlisted), Unlisted.PROTECT)
    resync = general.parsed("resync", _duration, 'write a duration such as "5min"')
    coexist: Iterable[Coexist] = Coexist
    if "coexist" in general:
        coexist = general.list("coexist", _coexist, _one_of(Coexist).removeprefix("write "))
    general.close()
    sections = root.table("networks", "write a table per network: [networks.NAME]")
    networks = {}
    for name, section in sections.each_table("write a table: [networks.NAME]"):
        network = _network(name, section)
        if network is not None:
            networks[name] = network
    if "bridges" in root:
        root.table("bridges", "").wrong(
            None,
            "host bridges are not kept by this version",
            "make the bridge with the system's own tool and name it in networks.NAME.bridge",
        )
    root.close()
    _check_together(networks, sections)
    return Policy(
        enforcement=enforcement or Enforcement.ENFORCE,
        unlisted=unlisted or Unlisted.PROTECT,
        resync=resync or Policy().resync,
        coexist=frozenset(coexist),
        networks=networks,
    )


def _network(name: str, section: _Table) -> NetworkPolicy | None:
    if problem := _bad_name(name):
        section.wrong(None, problem, "take a name of letters, digits, '-', '_' and '.'")
    mode = section.enum("mode", SUPPORTED_MODES, None, elsewhere=Mode)
    dhcp = section.table("dhcp", "write dhcp.ranges and dhcp.hosts")
    hosts = (_host(entry) for entry in dhcp.tables("hosts", "{ mac = …, name = …, address = … }"))
    network = NetworkPolicy(
        name=name,
        mode=mode or Mode.ISOLATED,
        bridge=section.parsed("bridge", _ifname, "write an interface name of at most 15 letters"),
        autostart=section.get("autostart", bool, "write true or false") is not False,
        addresses=section.list("addresses", _address, '"ADDRESS/PREFIX"'),
        ranges=dhcp.list("ranges", _range, '"FIRST-LAST"'),
        hosts=tuple(host for host in hosts if host is not None),
        domain=section.parsed("domain", _domain, 'write a DNS name such as "lab.example"'),
        mac=section.parsed("mac", _mac, 'write a unicast address such as "52:54:00:12:34:56"'),
        mtu=section.get("mtu", int, "write a number of bytes from 68 to 65535"),
        stp=section.get("stp", bool, "write true or false"),
    )
    dhcp.close()
    section.close()
    if mode is None:
        return None
    _check_network(network, section, dhcp)
    return network


def _host(entry: _Table) -> DhcpHost | None:
    host_address = entry.parsed("address", _host_address, 'write an address such as "10.77.0.20"')
    mac = entry.parsed("mac", _mac, 'write a unicast address such as "52:54:00:12:34:56"')
    duid = entry.parsed("id", _duid, 'write a DUID such as "0:1:0:1:18:aa:62:fe:0:16:3e:44"')
    name = entry.parsed("name", _host_name, 'write a host name such as "web"')
    entry.close()
    if host_address is None:
        if "address" not in entry:
            entry.wrong("address", "is missing", 'write an address such as "10.77.0.20"')
        return None
    if host_address.version == 4 and "mac" not in entry:
        entry.wrong("mac", "is missing", "an IPv4 reservation is made by MAC address")
    if host_address.version == 6 and "mac" in entry:
        entry.wrong("mac", "cannot key an IPv6 reservation", 'write id = "DUID" or name = "…"')
    return DhcpHost(address=host_address, mac=mac, id=duid, name=name)


def _check_network(network: NetworkPolicy, section: _Table, dhcp: _Table) -> None:
    """What can only be judged with the whole network at hand."""
    mode = network.mode
    if mode is Mode.BRIDGE:
        if "bridge" not in section:
            section.wrong("bridge", "is missing", "name the host bridge that guests are put on")
        for key in ("addresses", "dhcp", "domain", "mac", "mtu", "stp"):
            if key in section:
                right = "the bridge belongs to the host: set it there"
                section.wrong(key, 'has no meaning with mode = "bridge"', right)
        return
    if mode is not Mode.ISOLATED and "addresses" not in section:
        right = 'write addresses = ["ADDRESS/PREFIX"]'
        section.wrong("addresses", f'is missing: mode = "{mode}" needs one', right)
    if network.mtu is not None:
        least = 1280 if any(address.version == 6 for address in network.addresses) else 68
        if not least <= network.mtu <= 65535:
            why = " (IPv6 needs 1280, RFC 8200)" if least == 1280 else ""
            right = f"write a number of bytes from {least} to 65535{why}"
            section.wrong("mtu", f"{network.mtu} is out of range", right)
    _check_dhcp(network, dhcp)


def _check_dhcp(network: NetworkPolicy, dhcp: _Table) -> None:
    served: set[Address] = set()
    own = {address.ip for address in network.addresses}

    def subnet(address: HostAddress) -> Address | None:
        found = (candidate for candidate in network.addresses if address in candidate.network)
        return next(found, None)

    known = ", ".join(str(address.network) for address in network.addresses) or "addresses"
    for at, item in enumerate(network.ranges):
        list_of_ranges = dhcp.at("ranges")
        home = subnet(item.start)
        if home is None or item.end not in home.network:
            right = f"take both ends from one of {known}"
            list_of_ranges.wrong(at, f'"{item}" is not in a subnet of the network', right)
            continue
        served.add(home)
        inside = [ip for ip in own if item.start.version == ip.version and _within(ip, item)]
        if inside:
            right = f"leave {inside[0]} out of the range: it is the host's own"
            list_of_ranges.wrong(at, f'"{item}" contains the address {inside[0]}', right)
        edges = _edges(home)
        if any(_within(edge, item) for edge in edges):
            right = f"leave {edges[0]} and {edges[-1]} out of it"
            list_of_ranges.wrong(at, f'"{item}" contains network or broadcast address', right)
        for before in network.ranges[:at]:
            if before.start.version == item.start.version and _overlap(item, before):
                list_of_ranges.wrong(at, f'"{item}" overlaps "{before}"', "join or separate them")
    for at, host in enumerate(network.hosts):
        list_of_hosts = dhcp.at("hosts")
        home = subnet(host.address)
        if home is None:
            right = f"take an address from one of {known}"
            list_of_hosts.wrong(at, f'"{host.address}" is not in a subnet of the network', right)
            continue
        served.add(home)
        if host.address in own:
            list_of_hosts.wrong(at, f'"{host.address}" is the host\'s own', "take another address")
        for other in network.hosts[:at]:
            twice = [str(key) for key in _host_keys(host) if key in _host_keys(other)]
            if twice:
                shown = ", ".join(f'"{key}"' for key in twice)
                list_of_hosts.wrong(at, f"{shown} is reserved twice", "keep one of the two")
    for version in (4, 6):
        if len(homes := {home for home in served if home.version == version}) > 1:
            dhcp.wrong(
                None,
                f"serves {len(homes)} IPv{version} subnets",
                f"libvirt serves one IPv{version} subnet a network: keep one",
            )


def _host_keys(host: DhcpHost) -> list[object]:
    return [key for key in (host.address, host.mac, host.id) if key is not None]


def _check_together(networks: Mapping[str, NetworkPolicy], sections: _Table) -> None:
    for one, two in combinations(networks.values(), 2):
        both_own = one.mode.has_own_bridge and two.mode.has_own_bridge
        if (
            one.bridge is not None
            and one.bridge == two.bridge
            and (both_own or one.mode is not two.mode)
        ):
            wrong = f'"{two.bridge}" is the bridge of networks.{one.name} already'
            sections.at(two.name).wrong("bridge", wrong, "give each network its own bridge")
        if one.mac is not None and one.mac == two.mac:
            wrong = f'"{two.mac}" is the MAC address of networks.{one.name} already'
            sections.at(two.name).wrong("mac", wrong, "give each network its own")
    owned = [(network, address) for network in networks.values() for address in network.addresses]
    for (one, first), (two, second) in combinations(owned, 2):
        if first.version == second.version and first.network.overlaps(second.network):
            whose = "this network" if one is two else f"networks.{one.name}"
            wrong = f'"{second}" overlaps "{first}" of {whose}'
            sections.at(two.name).wrong("addresses", wrong, "take a subnet of its own")


def _bad_name(name: str) -> str | None:
    if not name or name in (".", "..") or name.startswith("-"):
        return f"{_shown(name)} cannot be a network's name"
    if len(name.encode()) > 200:
        return "the name is longer than 200 bytes"
    if "/" in name or not name.isprintable():
        return f"{_shown(name)} holds a slash or an unprintable character"
    return None


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("is not a duration")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if not 10 <= seconds <= 86400:
        raise ValueError('is out of range; write 10s to 24h, such as "5min"')
    return float(seconds)


def _ifname(text: str) -> IfName:
    if not _IFNAME.fullmatch(text):
        raise ValueError("is not an interface name")
    return IfName(text)


def _address(text: str) -> Address:
    try:
        address = ip_interface(text)
    except ValueError:
        raise ValueError("is not an address with prefix length") from None
    if "/" not in text:
        guess = "24" if address.version == 4 else "64"
        raise ValueError(f'has no prefix length; write "{text}/{guess}"')
    if address.network.num_addresses < 4:
        raise ValueError("leaves no address for guests; write a shorter prefix")
    if address.ip in _edges(address):
        first = address.network.network_address + 1
        what = "the network itself" if address.ip == _edges(address)[0] else "the broadcast address"
        raise ValueError(f'is {what}; write "{first}/{address.network.prefixlen}"')
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        raise ValueError("cannot be a bridge's address; take a private one")
    return address


def _host_address(text: str) -> HostAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise ValueError("is not an IP address") from None


def _edges(address: Address) -> tuple[HostAddress, ...]:
    """Addresses that no host may have: IPv6 has no broadcast (RFC 4291)."""
    network = address.network
    if isinstance(address, IPv4Interface):
        return (network.network_address, network.broadcast_address)
    return (network.network_address,)


def _range(text: str) -> DhcpRange:
    first, dash, last = text.partition("-")
    if not dash:
        raise ValueError('is not a range; write "FIRST-LAST"')
    start, end = _host_address(first.strip()), _host_address(last.strip())
    if start.version != end.version:
        raise ValueError("mixes IPv4 and IPv6; write both ends alike")
    if int(end) < int(start):
        raise ValueError(f'ends before it starts; write "{end}-{start}"')
    return DhcpRange(start, end)


def _coexist(text: str) -> Coexist:
    try:
        return Coexist(text)
    except ValueError:
        near = _near(text, list(Coexist))
        better = f'; do you mean "{near}"?' if near else ""
        raise ValueError(f"is not a tool that vnetd knows{better}") from None


def _mac(text: str) -> str:
    mac = text.lower()
    if not _MAC.fullmatch(mac):
        raise ValueError("is not a MAC address")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError("is not a unicast address")
    return mac


def _duid(text: str) -> str:
    if not _DUID.fullmatch(text):
        raise ValueError("is not a DUID")
    return text.lower()


def _domain(text: str) -> str:
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise ValueError("is not a DNS name")
    return text


def _host_name(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("is not a host name")
    return text


def _within(address: HostAddress, item: DhcpRange) -> bool:
    return int(item.start) <= int(address) <= int(item.end)


def _overlap(one: DhcpRange, two: DhcpRange) -> bool:
    return int(one.start) <= int(two.end) and int(two.start) <= int(one.end)


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        else:
            into[key] = value


def _value(document: Any, path: Path) -> Any:
    for part in path:
        document = document[part]
    return document


_KINDS: Mapping[type, str] = {
    str: "a text",
    int: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def _one_of(members: Iterable[StrEnum]) -> str:
    return "write one of " + ", ".join(f'"{member}"' for member in members)


def _near(word: str, known: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = text if text.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def dotted(path: Path) -> str:
    """A key as a policy writes it: networks.lab.dhcp.hosts[2]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if bare else f'"{part}"')
    return text
