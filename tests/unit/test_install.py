"""packaging/install puts whole files in their places, and takes all but the admin's out again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import tomli

from vnetd import __version__

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
        "usr/share/vnetd/vnetd/daemon.py",
        "usr/lib/systemd/system/vnetd.service",
        "usr/lib/systemd/system/vnetd-libvirt-status.socket",
        "usr/lib/systemd/system/vnetd-libvirt-status@.service",
        "usr/lib/sysusers.d/vnetd.conf",
        "usr/lib/systemd/catalog/vnetd.catalog",
        "usr/lib/tmpfiles.d/vnetd.conf",
        "usr/share/polkit-1/rules.d/vnetd.rules",
        "usr/share/doc/vnetd/iptables-legacy.conf",
        "usr/share/doc/vnetd/libvirt-hardened.rules",
        "usr/share/doc/vnetd/vnetd.rules.yml",
        "usr/share/dbus-1/system.d/org.vnetd1.conf",
        "usr/share/dbus-1/system-services/org.vnetd1.service",
        "usr/share/dbus-1/interfaces/org.vnetd1.Port.xml",
        "usr/share/polkit-1/actions/org.vnetd1.policy",
        "usr/share/polkit-1/rules.d/org.vnetd1.rules",
        "usr/share/man/man5/org.vnetd1.5",
        "usr/share/man/man8/vnetd.8",
        "usr/share/bash-completion/completions/vnetctl",
        "etc/vnetd/vnetd.toml",
    } <= files
    assert not [name for name in files if "/." in name]
    assert install(tmp_path) == files
    assert install(tmp_path, "--remove") == {"etc/vnetd/vnetd.toml"}


def test_packages_have_the_version_of_the_program() -> None:
    assert (TREE / "packaging/deb/changelog").read_text().startswith(f"vnetd ({__version__}) ")
    assert f"\nVersion:        {__version__}\n" in (TREE / "packaging/rpm/vnetd.spec").read_text()


def test_packages_depend_on_the_libraries_of_the_program() -> None:
    project = tomli.loads((TREE / "pyproject.toml").read_text())["project"]
    control = (TREE / "packaging/deb/control").read_text()
    spec = (TREE / "packaging/rpm/vnetd.spec").read_text()
    for dependency in project["dependencies"]:
        name, least = dependency.split(">=")
        package = f"python3-{name.removesuffix('-python')}"
        assert f" {package} (>= {least}),\n" in control
        assert f"Requires:       {package} >= {least}\n" in spec
