"""What vnetd remembers of firewalld's zones over its own end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vnetd.backends.firewalls.zoned import Zoned


def test_the_next_vnetd_knows(tmp_path: Path) -> None:
    first = Zoned(tmp_path)
    first.note("vblab", "lab", "public")
    first.note("vbquiet", "quiet", "")
    first.note("vblab", "lab", "libvirt")  # again: what was before vnetd stays
    first.forget("vbquiet")
    assert Zoned(tmp_path).bridges == first.bridges == {"vblab": ("lab", "public")}


def test_another_boot_begins_anew(tmp_path: Path) -> None:
    Zoned(tmp_path).note("vblab", "lab", "public")
    path = tmp_path / "zones.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))
    assert Zoned(tmp_path).bridges == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"boot": 1, "bridges": 2}'])
def test_a_broken_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "zones.json").write_text(text)
    zoned = Zoned(tmp_path)
    assert zoned.bridges == {}
    zoned.note("vblab", "lab", "")
    assert Zoned(tmp_path).bridges == {"vblab": ("lab", "")}


def test_what_cannot_be_written_down_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    zoned = Zoned(tmp_path / "file")
    zoned.note("vblab", "lab", "")
    assert zoned.bridges == {"vblab": ("lab", "")}
