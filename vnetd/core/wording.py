"""How lists, numbers and names are said to people."""

from __future__ import annotations

from collections.abc import Sequence


def few(items: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    shown = between.join(items[:most])
    return shown if len(items) <= most else f"{shown}{between}and {len(items) - most} more"


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def printable(text: str, *, keep: str = "") -> str:
    """Whatever moves a cursor, turns colours or directions, or is not seen, as Python writes it.

    Names of processes, links and networks may hold all of it.
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign in keep or sign.isprintable() else sign.encode("unicode_escape").decode()
        for sign in text
    )
