"""Entries of the history."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vnetd.core.model import Cause, Source


class Outcome(StrEnum):
    REPAIRED = "repaired"
    FAILED = "failed"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Record:
    """time is ISO 8601 in UTC; ms from first notice to verified. sources: where it was worked on;
    metrics go by it, and the history does without.
    """

    time: str
    object: str
    drift: tuple[str, ...]
    cause: Cause | None
    actions: tuple[str, ...]
    ms: int
    outcome: Outcome
    sources: frozenset[Source] = field(default=frozenset(), compare=False)


def to_json(record: Record) -> dict[str, Any]:
    cause = record.cause
    return {
        "time": record.time,
        "object": record.object,
        "drift": list(record.drift),
        "cause": None
        if cause is None
        else {"process": cause.process, "pid": cause.pid, "parents": list(cause.parents)},
        "actions": list(record.actions),
        "ms": record.ms,
        "outcome": record.outcome.value,
    }


def from_json(data: dict[str, Any]) -> Record:
    """Raises KeyError, TypeError or ValueError for what to_json never wrote."""
    cause = data["cause"]
    return Record(
        time=data["time"],
        object=data["object"],
        drift=tuple(data["drift"]),
        cause=None
        if cause is None
        else Cause(cause["process"], int(cause["pid"]), tuple(cause.get("parents", ()))),
        actions=tuple(data["actions"]),
        ms=int(data["ms"]),
        outcome=Outcome(data["outcome"]),
    )
