"""The policy's file is replaced whole, where it is still the one that was read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vnetd.backends.policyfile import read, replace
from vnetd.errors import Conflict, PolicyError, VnetdError


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "vnetd.toml"
    path.write_text("# one\n")
    return path


def test_each_text_has_an_etag_and_none_has_one_too(tmp_path: Path, main: Path) -> None:
    text, etag = read(main)
    assert text == "# one\n"
    main.write_text("")
    assert len({etag, read(main)[1], read(tmp_path / "none")[1]}) == 3
    main.write_text("# one\n")
    assert read(main) == (text, etag)


def test_what_was_read_is_replaced_and_nothing_else_is_left(tmp_path: Path, main: Path) -> None:
    (tmp_path / ".vnetd.toml.new").write_text("of one who was killed")
    main.chmod(0o640)
    etag = replace(main, "# zwölf\r\n", read(main)[1])
    assert read(main) == (main.read_bytes().decode(), etag) == ("# zwölf\r\n", etag)
    assert main.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["vnetd.toml"]


def test_the_first_one_is_for_everybody_to_read(tmp_path: Path) -> None:
    main = tmp_path / "vnetd.toml"
    replace(main, "", read(main)[1])
    assert main.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("etag", ["", "absent", "\udcff", "0" * 64, "x" * 10_000])
def test_with_another_etag_it_stays(main: Path, etag: str) -> None:
    with pytest.raises(Conflict, match="read it again, merge, and try again"):
        replace(main, "# two\n", etag)
    assert main.read_text() == "# one\n"


def test_the_second_of_two_is_told(main: Path) -> None:
    etag = read(main)[1]
    replace(main, "# two\n", etag)
    with pytest.raises(Conflict):
        replace(main, "# three\n", etag)
    assert main.read_text() == "# two\n"


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path, main: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(main)
    replace(link, "# two\n", read(link)[1])
    assert link.is_symlink()
    assert main.read_text() == "# two\n"


def test_no_temporary_file_is_written_through_a_link(tmp_path: Path, main: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / ".vnetd.toml.new").symlink_to(other)
    replace(main, "# two\n", read(main)[1])
    assert other.read_text() == "mine"
    assert not main.is_symlink()


def test_where_it_cannot_be_written_that_is_said(tmp_path: Path) -> None:
    main = tmp_path / "none/vnetd.toml"
    with pytest.raises(VnetdError, match=r"none/vnetd.toml cannot be written: .*; make its"):
        replace(main, "", read(main)[1])


def test_what_the_bus_cannot_carry_is_not_read(main: Path) -> None:
    main.write_bytes(b"a = 1\n\0")
    with pytest.raises(PolicyError, match=r"vnetd.toml:2: holds a NUL"):
        read(main)
