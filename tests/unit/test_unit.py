"""The unit as systemd itself judges it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SYSTEMD = Path(__file__).parents[2] / "systemd"


def exposure(unit: Path) -> float:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert found, said
    return float(found[1])


def test_the_sandbox_is_tight() -> None:
    assert exposure(SYSTEMD / "vnetd.service") <= 1.5
    assert exposure(SYSTEMD / "vnetd-libvirt-status@.service") <= 1.5


def test_the_drop_in_for_iptables_legacy_does_not_open_it_wide(tmp_path: Path) -> None:
    unit = tmp_path / "vnetd.service"
    # Of a file systemd-analyze reads no drop-ins.
    parts = (SYSTEMD / name for name in ("vnetd.service", "iptables-legacy.conf"))
    unit.write_text("".join(part.read_text() for part in parts))
    assert exposure(unit) <= 1.7


def test_the_service_has_one_capability() -> None:
    text = (SYSTEMD / "vnetd.service").read_text()
    assert re.findall(r"^(?:Ambient|.*Bounding).*=(.*)", text, re.MULTILINE) == [
        "CAP_NET_ADMIN",
        "CAP_NET_ADMIN",
    ]
    assert "\nUser=vnetd\n" in text
