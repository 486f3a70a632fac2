"""Network cards as sysfs shows them: on which PCI function one is, and whether it is wireless."""

from __future__ import annotations

import re
from pathlib import Path

_LINKS = Path("/sys/class/net")
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def pci_path(name: str, links: Path = _LINKS) -> str:
    """As udev's ID_PATH; "" for what is on no PCI bus. A virtual card is below its PCI function."""
    device = str((links / name / "device").resolve())
    found = [part for part in device.split("/") if _PCI.fullmatch(part)]
    return f"pci-{found[-1]}" if found else ""


def is_wireless(name: str, links: Path = _LINKS) -> bool:
    return any((links / name / part).exists() for part in ("wireless", "phy80211"))


def wireless_uplink(uplink: str, links: Path = _LINKS) -> bool:
    """Of one as a policy names it, but for altnames, which sysfs does not know."""
    if (links / uplink).exists():
        return is_wireless(uplink, links)
    cards = [path.name for path in links.glob("*") if is_wireless(path.name, links)]
    return any(uplink in (pci_path(name, links), _mac(links / name)) for name in cards)


def _mac(link: Path) -> str:
    try:
        return (link / "address").read_text().strip()
    except OSError:
        return ""
