"""A TOML table being read: hands out its keys checked, and notes what is wrong with them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from vnetd.core.policy.toml_lines import Path
from vnetd.errors import Problem

_T = TypeVar("_T")
_Enum = TypeVar("_Enum", bound=StrEnum)


class Table:
    def __init__(
        self,
        values: Mapping[str, Any],
        path: Path,
        lines: Mapping[Path, tuple[str, int]],
        problems: list[Problem],
    ) -> None:
        self._values = values
        self._path = path
        self._lines = lines
        self._problems = problems
        self._known: list[str] = []

    def wrong(self, key: str | int | None, wrong: str, right: str) -> None:
        path = self._path if key is None else (*self._path, key)
        places = [place for place in self._lines if place[: len(path)] == path]
        places += [path[:n] for n in range(len(path), 0, -1) if path[:n] in self._lines]
        file, line = self._lines[places[0]]
        self._problems.append(Problem(file, line, dotted(path), wrong, right))

    def at(self, key: str) -> Table:
        """The place of a key, to report what is wrong inside of it."""
        return Table({}, (*self._path, key), self._lines, self._problems)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, kind: type[_T], right: str) -> _T | None:
        self._known.append(key)
        value = self._values.get(key)
        # bool is an int to Python, not to an admin
        if value is None:
            return None
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        self.wrong(key, f"{shown(value)} is not {_KINDS[kind]}", right)
        return None

    def parsed(self, key: str, parser: Callable[[str], _T], right: str) -> _T | None:
        text = self.get(key, str, right)
        return None if text is None else self.parse(key, text, parser, right)

    def number_or_text(self, key: str, parser: Callable[[str], _T], right: str) -> _T | None:
        if isinstance(self._values.get(key), int):
            number = self.get(key, int, right)
            return None if number is None else self.parse(key, str(number), parser, right)
        return self.parsed(key, parser, right)

    def list(
        self, key: str, parser: Callable[[str], _T], right: str, *, numbers: bool = False
    ) -> tuple[_T, ...]:
        """numbers: may stand among the texts."""
        found = []
        place = self.at(key)
        for at, item in enumerate(self.get(key, list, f"write a list: [{right}]") or ()):
            if numbers and isinstance(item, int) and not isinstance(item, bool):
                item = str(item)
            if not isinstance(item, str):
                place.wrong(at, f"{shown(item)} is not a text", f"write {right}")
            elif (value := place.parse(at, item, parser, f"write {right}")) is not None:
                found.append(value)
        return tuple(found)

    def one_or_list(self, key: str, parser: Callable[[str], _T], right: str) -> tuple[_T, ...]:
        """A list may be written without brackets if it has one item."""
        if isinstance(self._values.get(key), str):
            value = self.parsed(key, parser, f"write {right}")
            return () if value is None else (value,)
        return self.list(key, parser, right)

    def enum(
        self,
        key: str,
        members: Sequence[_Enum],
        default: _Enum | None,
        *,
        elsewhere: Iterable[_Enum] = (),
    ) -> _Enum | None:
        """elsewhere: words that libvirt knows, but not this version of vnetd."""
        right = _one_of(members)
        text = self.get(key, str, right)
        if text is None:
            if default is None and key not in self:
                self.wrong(key, "is missing", right)
            return default
        for member in members:
            if text == member:
                return member
        near = nearest(text, members)
        if text in list(elsewhere):
            self.wrong(key, f"{shown(text)} is not kept by this version", right)
        else:
            right = f'do you mean "{near}"?' if near else right
            self.wrong(key, f"{shown(text)} is not known", right)
        return default

    def table(self, key: str, right: str) -> Table:
        values = self.get(key, dict, right) or {}
        return Table(values, (*self._path, key), self._lines, self._problems)

    def tables(self, key: str, right: str) -> Iterable[Table]:
        for at, item in enumerate(self.get(key, list, f"write a list: [{right}]") or ()):
            if isinstance(item, dict):
                yield Table(item, (*self._path, key, at), self._lines, self._problems)
            else:
                self.at(key).wrong(at, f"{shown(item)} is not a table", f"write {right}")

    def texts_or_tables(self, key: str, right: str) -> Iterable[tuple[int, str | Table]]:
        for at, item in enumerate(self.get(key, list, "write a list") or ()):
            if isinstance(item, str):
                yield at, item
            elif isinstance(item, dict):
                yield at, Table(item, (*self._path, key, at), self._lines, self._problems)
            else:
                self.at(key).wrong(at, f"{shown(item)} is neither a text nor a table", right)

    def each_table(self, right: str) -> Iterable[tuple[str, Table]]:
        for name in self._values:
            yield name, self.table(name, right)

    def close(self) -> None:
        """Report the keys that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                near = nearest(key, self._known)
                right = f'do you mean "{near}"?' if near else "known are " + ", ".join(self._known)
                self.wrong(key, "is not a known key", right)

    def parse(
        self, key: str | int | None, text: str, parser: Callable[[str], _T], right: str
    ) -> _T | None:
        try:
            return parser(text)
        except ValueError as error:
            wrong, _, better = str(error).partition("; ")
            self.wrong(key, f"{shown(text)} {wrong}", better or right)
            return None


def dotted(path: Path) -> str:
    """A key as a policy writes it: networks.lab.dhcp.hosts[2]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if bare else f'"{part}"')
    return text


_KINDS: Mapping[type, str] = {
    str: "a text",
    int: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def _one_of(members: Iterable[StrEnum]) -> str:
    return "write one of " + ", ".join(f'"{member}"' for member in members)


def nearest(word: str, known: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = text if text.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Key by key: the new one wins."""
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merge(old, value)
        else:
            into[key] = value


def value_at(document: Any, path: Path) -> Any:
    for part in path:
        document = document[part]
    return document


def bad_name(name: str) -> str | None:
    if not name or name in (".", "..") or name.startswith("-"):
        return f"{shown(name)} cannot be a network's name"
    if len(name.encode()) > 200:
        return "the name is longer than 200 bytes"
    if "/" in name or not name.isprintable():
        return f"{shown(name)} holds a slash or an unprintable character"
    return None
