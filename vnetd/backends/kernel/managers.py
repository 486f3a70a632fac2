"""Other tools that lead links of the host: NetworkManager, systemd-networkd, ifupdown, netplan.
What they keep in files says which. Only NetworkManager must be asked, where it has a profile for a
link that it did not make: whether that is an admin's.
"""

from __future__ import annotations

import asyncio
import configparser
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vnetd.backends import process
from vnetd.core.model import IfName, Owner
from vnetd.errors import BackendError

log = logging.getLogger(__name__)

STATE = (Path("/run/NetworkManager/devices"), Path("/run/systemd/netif/links"))
"""Where files named by the indexes of links tell what became of them; NetworkManager writes one
some seconds after it has taken a link.
"""

_NM_DEVICES, _NETWORKD_LINKS = (str(path).lstrip("/") for path in STATE)
_NETWORKD_UNITS = ("etc/systemd/network", "run/systemd/network", "usr/lib/systemd/network")
_IFUPDOWN = "etc/network/interfaces"
_NETPLAN = "etc/netplan"
_MOST_BYTES = 1 << 20
_NM_FILE = "/etc/NetworkManager/conf.d/vnetd-unmanaged.conf"
_NETWORKD_FILE = "/etc/systemd/network/00-vnetd-unmanaged.network"
_NM = "org.freedesktop.NetworkManager"
_NM_ACTIVE = f"{_NM}.Connection.Active"
_NM_EXTERNAL = 0x80  # NM_ACTIVATION_STATE_FLAG_EXTERNAL


class Managers:
    def __init__(self, root: Path = Path("/")) -> None:
        """root: of the files, "/" but for tests."""
        self._root = root
        self._doubtful: frozenset[str] = frozenset()
        self._led: Mapping[str, str] = {}

    async def owners(self, links: Mapping[IfName, int | None]) -> dict[str, Owner]:
        """Of these links: name → index, None for one that is not there (yet)."""
        devices = await asyncio.to_thread(self._devices, links)
        doubtful = frozenset(device.profile for device in devices.values() if device.was_there)
        if doubtful != self._doubtful:
            self._doubtful, self._led = doubtful, await _led() if doubtful else {}
        return await asyncio.to_thread(self._owners, links, devices)

    def _devices(self, links: Mapping[IfName, int | None]) -> dict[IfName, Device]:
        there = {name: index for name, index in links.items() if index is not None}
        texts = {name: self._read(f"{_NM_DEVICES}/{index}") for name, index in there.items()}
        devices = {name: nm_device(text) for name, text in texts.items() if text}
        return {name: device for name, device in devices.items() if device is not None}

    def _owners(
        self, links: Mapping[IfName, int | None], devices: Mapping[IfName, Device]
    ) -> dict[str, Owner]:
        found: dict[str, Owner] = {}
        netplan, netdevs, stanzas = self._netplan(), self._netdevs(), dict(self._ifupdown())
        for name, index in links.items():
            owner = (
                self._network_manager(name, devices.get(name))
                or netplan.get(name)
                or self._networkd(name, index, netdevs.get(name))
                or stanzas.get(name)
            )
            if owner is not None:
                found[str(name)] = owner
        return found

    def _network_manager(self, name: IfName, device: Device | None) -> Owner | None:
        if device is None or (device.was_there and device.profile not in self._led):
            return None
        profile = self._led.get(device.profile, device.profile)
        cure = f"write what vnetctl unmanaged {name} prints, and run: nmcli general reload"
        return Owner("NetworkManager", f"profile {profile}", cure)

    def _networkd(self, name: IfName, index: int | None, netdev: str | None) -> Owner | None:
        text = self._read(f"{_NETWORKD_LINKS}/{index}") if index is not None else ""
        file = netdev or networkd_file(text)
        if not file:
            return None
        if "netplan" in file:
            cure = f"remove {name} from the files in /{_NETPLAN}, and run: netplan apply"
            return Owner("netplan", file, cure)
        if file.endswith(".netdev"):
            cure = f"remove {file}, and run: networkctl reload"
        else:
            cure = f"write Unmanaged=yes under [Link] in {file}, and run: networkctl reload"
        return Owner("systemd-networkd", file, cure)

    def _netdevs(self) -> dict[str, str]:
        """Name of the link → the file that has systemd-networkd make it."""
        paths = self._files(*_NETWORKD_UNITS, suffix=".netdev")
        return {ini_value(self._read(path), "NetDev", "Name"): f"/{path}" for path in paths}

    def _netplan(self) -> dict[str, Owner]:
        found: dict[str, Owner] = {}
        for path in self._files(_NETPLAN, suffix=".yaml"):
            for name, line in netplan_lines(self._read(path)):
                cure = f"remove {name}: there, and run: netplan apply"
                found.setdefault(name, Owner("netplan", f"/{path}:{line}", cure))
        return found

    def _ifupdown(self) -> Iterator[tuple[str, Owner]]:
        """Bridges only: of other links it sets the addresses once, when they come up."""
        for place, name in interfaces_bridges(f"{_IFUPDOWN}", self._read, self._glob):
            cure = "remove that stanza; ifdown would remove the bridge, so do not run it"
            yield name, Owner("ifupdown", f"/{place}", cure)

    def _read(self, path: str) -> str:
        """ "" where there is no such file, or nobody may read it."""
        try:
            with (self._root / path).open("rb") as file:
                return file.read(_MOST_BYTES).decode(errors="replace")
        except OSError:
            return ""

    def _files(self, *directories: str, suffix: str) -> list[str]:
        """One of a name hides those of the same name in later directories: systemd.network(5)."""
        found: dict[str, str] = {}
        for directory in directories:
            for path in self._glob(f"{directory}/*{suffix}"):
                found.setdefault(path.rpartition("/")[2], path)
        return [found[name] for name in sorted(found)]

    def _glob(self, pattern: str) -> list[str]:
        pattern = pattern.lstrip("/")
        return sorted(str(path.relative_to(self._root)) for path in self._root.glob(pattern))


@dataclass(frozen=True, slots=True)
class Device:
    """As NetworkManager keeps it in mind. profile: UUID of the one that it has for it. was_there: a
    virtual link that others made, which it may only watch, by a profile of its own making.
    """

    profile: str
    was_there: bool


def nm_device(text: str) -> Device | None:
    """None where NetworkManager has no profile for it. text: /run/NetworkManager/devices/INDEX."""
    if ini_value(text, "device", "managed") != "true":
        return None
    profile = ini_value(text, "device", "connection-uuid")
    owned = ini_value(text, "device", "nm-owned")
    return Device(profile, was_there=owned == "false") if profile else None


async def _led() -> dict[str, str]:
    """Of the profiles that are up, those that are not of NetworkManager's own making, for a link
    that it only watches: UUID → name. Empty where it gives no answer that is understood.
    """
    options = ("--system", "--json=short", "--auto-start=no", "--timeout=2")
    method = ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    try:
        text = await process.run(["busctl", *options, "call", _NM, "/org/freedesktop", *method])
        return nm_led(text)
    except (BackendError, ValueError, KeyError, TypeError) as error:
        log.debug("NetworkManager: %r", error)
        return {}


def nm_led(text: str) -> dict[str, str]:
    """text: its GetManagedObjects, in busctl's JSON."""
    (objects,) = json.loads(text)["data"]
    active = [properties for of in objects.values() if (properties := of.get(_NM_ACTIVE))]
    return {
        str(one["Uuid"]["data"]): str(one["Id"]["data"])
        for one in active
        if not one["StateFlags"]["data"] & _NM_EXTERNAL
    }


def networkd_file(text: str) -> str:
    """The .network file by which systemd-networkd leads a link, "" if it does not. text:
    /run/systemd/netif/links/INDEX.
    """
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if values.get("ADMIN_STATE") in ("configuring", "configured"):
        return values.get("NETWORK_FILE", "") or "no file"
    return ""


def ini_value(text: str, section: str, key: str) -> str:
    """ "" where there is none, or the text is no such file."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True)
    try:
        parser.read_string(text)
        return parser.get(section, key, fallback="") or ""
    except configparser.Error:
        return ""


def interfaces_bridges(
    path: str, read: Callable[[str], str], glob: Callable[[str], Iterable[str]]
) -> Iterator[tuple[str, str]]:
    """(file:line, name) of each bridge that interfaces(5) defines, in that file and in those that
    it names.
    """
    stanza: tuple[str, str] | None = None
    for number, line in _joined(read(path)):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        match words[0]:
            case "iface" if len(words) > 1:
                stanza = (f"{path}:{number}", words[1])
            case "auto" | "mapping" | "source" | "source-directory" | "no-auto-down":
                stanza = None
            case word if word.replace("-", "_") in ("bridge_ports", "bridge_vlan_aware") and stanza:
                yield stanza
                stanza = None
        for pattern in _sources(words):
            base = path.rpartition("/")[0]
            for other in glob(pattern if pattern.startswith("/") else f"{base}/{pattern}"):
                hidden = words[0] == "source-directory" and "." in other.rpartition("/")[2]
                if other != path and not hidden:
                    yield from interfaces_bridges(other, read, glob)


def netplan_lines(text: str) -> Iterator[tuple[str, int]]:
    """The links and bridges that a netplan file defines, and at which line."""
    parents: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"""( *)["']?([^\s#"':]+)["']?\s*:(\s|$)""", line)
        if match is None:
            continue
        depth, key = len(match[1]), match[2]
        parents = [parent for parent in parents if parent[0] < depth]
        if parents and parents[-1][1] in ("bridges", "ethernets", "bonds", "vlans"):
            yield key, number
        parents.append((depth, key))


def unmanaged(names: Iterable[str]) -> dict[str, str]:
    """Files by which NetworkManager and systemd-networkd leave these links alone: path → text."""
    listed = list(names)
    devices = ";".join(f"interface-name:{name}" for name in listed)
    return {
        _NM_FILE: f"[keyfile]\nunmanaged-devices+={devices}\n",
        _NETWORKD_FILE: f"[Match]\nName={' '.join(listed)}\n\n[Link]\nUnmanaged=yes\n",
    }


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines with those that a backslash continues: (number of the first, text)."""
    whole, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        began = began or number
        if line.endswith("\\"):
            whole += line[:-1]
            continue
        yield began, whole + line
        whole, began = "", 0


# Of a directory only names without dots count, as with run-parts(8): no editor's backups.
def _sources(words: list[str]) -> list[str]:
    if words[0] == "source":
        return words[1:]
    if words[0] == "source-directory":
        return [f"{directory}/*" for directory in words[1:]]
    return []
