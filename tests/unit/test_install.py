"""packaging/install puts whole files in their places, and takes all but the admin's out again."""

from __future__ import annotations

import subprocess
from pathlib import Path

TREE = Path(__file__).parents[2]


def install(root: Path, *arguments: str) -> set[str]:
    command = [str(TREE / "packaging/install"), "--root", str(root), *arguments]
    subprocess.run(command, check=True)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_install_and_remove(tmp_path: Path) -> None:
    files = install(tmp_path)
    assert {
        "usr/bin/vnetd",
        "usr/bin/vnetctl",
        "usr/lib/vnetd/vnetd/daemon.py",
        "usr/lib/systemd/system/vnetd.service",
        "usr/share/dbus-1/system.d/org.vnetd1.conf",
        "usr/share/man/man8/vnetd.8",
        "etc/vnetd/vnetd.toml",
    } <= files
    assert not [name for name in files if "/." in name]
    assert install(tmp_path) == files
    assert install(tmp_path, "--remove") == {"etc/vnetd/vnetd.toml"}
