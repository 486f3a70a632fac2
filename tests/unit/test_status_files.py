from __future__ import annotations

import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

from vnetd.backends.libvirt import status_files

UNIT = Path(__file__).parents[2] / "systemd/vnetd-libvirt-status@.service"


def test_what_the_unit_hands_over_is_understood(tmp_path: Path) -> None:
    (tmp_path / "lab.xml").write_text("<networkstatus/>")
    (tmp_path / "lab.pid").write_text("42")
    (command,) = (x for x in UNIT.read_text().splitlines() if x.startswith("ExecStart="))
    command = command.partition("=")[2].replace(str(status_files.DIRECTORY), str(tmp_path))
    archive = subprocess.run(shlex.split(command), capture_output=True, check=True).stdout
    ((written, text),) = status_files.unpack(archive)
    assert text == "<networkstatus/>"
    assert abs(written - (tmp_path / "lab.xml").stat().st_mtime_ns) < 1_000_000


def test_no_archive_is_refused() -> None:
    with pytest.raises(tarfile.TarError):
        status_files.unpack(b"")
