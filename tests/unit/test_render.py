from __future__ import annotations

from vnetd.cli.render import clean


def test_nothing_of_others_reaches_the_terminal_as_control() -> None:
    assert clean("lab ä ☃") == "lab ä ☃"
    assert clean("a\x1b[2Jb\n\t\x7f\u202e") == "a\\x1b[2Jb\\x0a\\x09\\x7f\\x202e"
