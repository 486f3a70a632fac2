"""Other tools that lead links of the host: NetworkManager, systemd-networkd, ifupdown, netplan.
What they keep in files says which; nobody needs to be asked.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vnetd.core.model import IfName, Owner

_NM_DEVICES = "run/NetworkManager/devices"
_NETWORKD_LINKS = "run/systemd/netif/links"
_NETWORKD_UNITS = ("etc/systemd/network", "run/systemd/network", "usr/lib/systemd/network")
_IFUPDOWN = "etc/network/interfaces"
_NETPLAN = "etc/netplan"
_MOST_BYTES = 1 << 20
_NM_FILE = "/etc/NetworkManager/conf.d/vnetd-unmanaged.conf"
_NETWORKD_FILE = "/etc/systemd/network/00-vnetd-unmanaged.network"


class Managers:
    """root: of the files, "/" but for tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def owners(self, links: Mapping[IfName, int | None]) -> dict[str, Owner]:
        """Of these links: name → index, None for one that is not there (yet)."""
        found = {}
        stanzas = dict(self._ifupdown())
        for name, index in links.items():
            owner = (
                self._network_manager(name, index)
                or self._netplan(name)
                or self._networkd(name, index)
                or stanzas.get(name)
            )
            if owner is not None:
                found[str(name)] = owner
        return found

    def _network_manager(self, name: IfName, index: int | None) -> Owner | None:
        text = self._read(f"{_NM_DEVICES}/{index}") if index is not None else ""
        profile = nm_profile(text)
        if profile is None:
            return None
        cure = f"write what vnetctl unmanaged {name} prints, and run: nmcli general reload"
        return Owner("NetworkManager", f"profile {profile}", cure)

    def _networkd(self, name: IfName, index: int | None) -> Owner | None:
        file = networkd_file(self._read(f"{_NETWORKD_LINKS}/{index}")) if index is not None else ""
        for path in self._files(*_NETWORKD_UNITS, suffix=".netdev"):
            if ini_value(self._read(path), "NetDev", "Name") == name:
                file = f"/{path}"
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

    def _netplan(self, name: IfName) -> Owner | None:
        for path in self._files(_NETPLAN, suffix=".yaml"):
            if line := netplan_line(self._read(path), name):
                place = f"/{path}:{line}"
                return Owner("netplan", place, f"remove {name}: there, and run: netplan apply")
        return None

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


def nm_profile(text: str) -> str | None:
    """UUID of the profile by which NetworkManager leads a device; None where it only watches, as it
    does with virtual links that others made. text: /run/NetworkManager/devices/INDEX.
    """
    if ini_value(text, "device", "managed") != "true":
        return None
    if ini_value(text, "device", "nm-owned") == "false":
        return None
    return ini_value(text, "device", "connection-uuid") or None


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


def netplan_line(text: str, name: str) -> int:
    """The line at which a netplan file defines a link or bridge of that name; 0: it does not."""
    parents: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"""( *)["']?([^\s#"':]+)["']?\s*:(\s|$)""", line)
        if match is None:
            continue
        depth, key = len(match[1]), match[2]
        parents = [parent for parent in parents if parent[0] < depth]
        kind = parents[-1][1] if parents else ""
        if key == name and kind in ("bridges", "ethernets", "bonds", "vlans"):
            return number
        parents.append((depth, key))
    return 0


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
