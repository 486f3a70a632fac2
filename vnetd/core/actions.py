"""What an action is. The actions themselves stand with what they keep, in keep/."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Action(ABC):
    """objects: whose drift it ends. impact: what running guests lose by it. str() is what it does,
    as one line.
    """

    objects: tuple[str, ...]
    reason: str
    impact: str = "none"
    quick: ClassVar[bool] = False
    """Over sooner than it takes to tell anybody that it has begun."""

    @abstractmethod
    def __str__(self) -> str: ...
