"""What is not as it must be. Drift is what vnetd puts right; a conflict is what it must leave alone
and report. The kinds of drift stand with what they are drift of, in keep/.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from vnetd.core.model import Cause, Source, network_object
from vnetd.core.wording import few


class Drift(ABC):
    """str() is one line for people; the object is named beside it."""

    __slots__ = ()
    source: ClassVar[Source]
    """The source whose change shows it."""

    @property
    @abstractmethod
    def object(self) -> str: ...

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class NetworkDrift(Drift):
    network: str

    @property
    def object(self) -> str:
        return network_object(self.network)


@dataclass(frozen=True, slots=True)
class Conflict:
    """cause: who made it, if the kernel told while vnetd was looking."""

    object: str
    text: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """What cannot be done yet for want of something else, and is done when that comes."""

    object: str
    text: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One key of a definition. want and have as a policy writes them."""

    key: str
    want: str
    have: str

    def __str__(self) -> str:
        return f"{self.key} is {self.have or 'none'} instead of {self.want or 'none'}"


def unequal(pairs: Iterable[tuple[str, object, object]]) -> tuple[Difference, ...]:
    """Of (key, wanted, had) those that are not the same."""
    return tuple(
        Difference(key, *(shown(a - b), shown(b - a)))
        if isinstance(a, frozenset) and isinstance(b, frozenset)
        else Difference(key, shown(a), shown(b))
        for key, a, b in pairs
        if a != b
    )


def joined(items: Iterable[Difference]) -> str:
    return ", ".join(str(item) for item in items)


def shown(value: object) -> str:
    """As a policy writes it."""
    match value:
        case None:
            return ""
        case bool():
            return "on" if value else "off"
        case tuple():
            return " ".join(str(item) for item in value)
        case frozenset():
            return few(sorted(str(item) for item in value))
        case float():
            return f"{value:g}"
        case _:
            return str(value)
