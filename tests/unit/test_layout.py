"""Folders beside the package must never look like packages to Python: dbus, systemd, packaging."""

from __future__ import annotations

from pathlib import Path

TREE = Path(__file__).parents[2]


def test_folders_of_files_hold_no_python() -> None:
    for folder in ("dbus", "polkit", "systemd", "etc", "packaging"):
        assert (TREE / folder).is_dir()
        assert list((TREE / folder).rglob("*.py")) == []


def test_no_module_shadows_a_library() -> None:
    for name in ("dbus", "libvirt", "systemd", "pyroute2", "tomli"):
        assert not (TREE / "vnetd" / f"{name}.py").exists()
        assert not (TREE / "tests" / name).exists()
