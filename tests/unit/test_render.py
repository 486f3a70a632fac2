from __future__ import annotations

import pytest

from vnetd.cli.render import clean, table

ROWS = [
    ("NETWORK", "STATE", "ADDRESSES"),
    ("lab", "converged", "10.77.0.1/24 fd77::1/64 10.78.0.1/24"),
    ("quiet", "degraded", "10.79.0.1/24"),
]


def test_nothing_of_others_reaches_the_terminal_as_control() -> None:
    assert clean("lab ä ☃") == "lab ä ☃"
    assert clean("a\x1b[2Jb\n\t\x7f\u202e") == "a\\x1b[2Jb\\x0a\\x09\\x7f\\x202e"


@pytest.mark.parametrize("columns", [None, 56, 200])
def test_a_table_that_fits_or_goes_into_a_file_is_a_line_a_row(columns: int | None) -> None:
    assert list(table(ROWS, columns)) == [
        "NETWORK  STATE      ADDRESSES",
        "lab      converged  10.77.0.1/24 fd77::1/64 10.78.0.1/24",
        "quiet    degraded   10.79.0.1/24",
    ]


def test_in_a_narrow_terminal_the_last_column_goes_on_below_itself() -> None:
    assert list(table(ROWS, 45)) == [
        "NETWORK  STATE      ADDRESSES",
        "lab      converged  10.77.0.1/24 fd77::1/64",
        "                    10.78.0.1/24",
        "quiet    degraded   10.79.0.1/24",
    ]


def test_and_where_it_has_no_room_below_its_row() -> None:
    assert list(table(ROWS, 30)) == [
        "NETWORK  STATE      ADDRESSES",
        "lab      converged",
        "    10.77.0.1/24 fd77::1/64",
        "    10.78.0.1/24",
        "quiet    degraded",
        "    10.79.0.1/24",
    ]


def test_words_stay_whole_however_narrow_it_is() -> None:
    assert list(table(ROWS[2:], 8)) == ["quiet  degraded", "    10.79.0.1/24"]
