"""How lists are said to people."""

from __future__ import annotations

from collections.abc import Sequence


def few(items: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    shown = between.join(items[:most])
    return shown if len(items) <= most else f"{shown}{between}and {len(items) - most} more"
