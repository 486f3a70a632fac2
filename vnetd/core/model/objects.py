"""What records, signals and logs speak of, and the states that it can be in."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    CONVERGED = "converged"
    HEALING = "healing"
    DRIFTED = "drifted"
    DEGRADED = "degraded"
    PAUSED = "paused"


FIREWALL_OBJECT = "firewall"
HOST_OBJECT = "host"
"""For what concerns no network alone: its firewall, or anything else."""


def bridge_object(name: str) -> str:
    return f"bridge/{name}"


def network_object(name: str) -> str:
    """The name under which records, signals and logs speak of it."""
    return f"network/{name}"


def network_of(object_: str) -> str | None:
    """None: it is of no network alone."""
    name = object_.removeprefix(network_object(""))
    return name if name != object_ else None
