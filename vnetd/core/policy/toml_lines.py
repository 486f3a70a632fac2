"""Find the lines on which a TOML document sets its keys: parsers give values, not places."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import tomli

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|\#[^\n]*|[][{}\n=,]',
    re.DOTALL,
)


def locate(text: str) -> dict[Path, int]:
    """Key path → line, from 1: of tables, keys and items of arrays. The text must be valid TOML."""
    places: dict[Path, int] = {}
    table: Path = ()
    for line, head, items in _statements(text):
        if head.startswith("["):
            table = _path(tomli.loads(head))
            places.setdefault(table, line)
            continue
        key = table + _path(tomli.loads(f"{head} = 0"))
        for length in range(len(table) + 1, len(key) + 1):
            places.setdefault(key[:length], line)
        places |= {(*key, at): item_line for at, item_line in items.items()}
    return places


def line_of(error: tomli.TOMLDecodeError) -> int:
    """The line that a syntax error names; tomli before 2.2 says it in the text only."""
    match = re.search(r"at line (\d+)", str(error))
    return int(match[1]) if match else 0


def _statements(text: str) -> Iterator[tuple[int, str, dict[int, int]]]:
    """(first line, a table header or the part before "=", line of each item of an array)."""
    line, start, start_line, depth, item = 1, 0, 1, 0, 0
    head_end: int | None = None
    has_value = False
    items: dict[int, int] = {}
    for token in _TOKEN.finditer(text + "\n"):
        sign = token[0]
        if sign == "\n" and depth == 0:
            head = text[start : token.start() if head_end is None else head_end].strip()
            if head:
                yield start_line, head, items
            start, start_line, item = token.end(), line + 1, 0
            head_end, has_value, items = None, False, {}
        elif head_end is None and (sign == "=" or sign.startswith("#")):
            head_end, has_value = token.start(), sign == "="
        elif has_value and depth == 1 and sign == ",":
            item += 1
        elif has_value and depth == 1 and sign[0] in "\"'{[":
            items.setdefault(item, line)
        if sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        line += sign.count("\n")


def _path(document: Mapping[str, Any]) -> Path:
    path: list[str | int] = []
    node: Any = document
    while isinstance(node, dict) and node:
        key = next(iter(node))
        path.append(key)
        node = node[key]
    return tuple(path)
