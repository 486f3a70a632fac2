"""When things happened on a host, as its systemd and its journal say (time.monotonic)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.system.host import Host


def of_unit(box: Host, unit: str, what: str) -> float:
    """When it last did so: InactiveExit (its start), ActiveEnter (it was ready) and so on."""
    shown = box.run("systemctl", "show", "--value", "-p", f"{what}TimestampMonotonic", unit)
    return int(shown) / 1e6


def converged(box: Host) -> float:
    """When vnetd last said that all is well, or that it has repaired something."""
    return _last(
        line
        for line in entries(box)
        if line.get("VNETD_STATE") == "converged" or line.get("VNETD_OUTCOME") == "repaired"
    )


def said(box: Host, text: str) -> float:
    """When systemd last said so of vnetd."""
    return _last(line for line in entries(box) if text in str(line["MESSAGE"]))


def entries(box: Host) -> list[dict[str, Any]]:
    lines = box.run("journalctl", "-b", "-u", "vnetd", "-o", "json", "--no-pager").splitlines()
    return [json.loads(line) for line in lines]


def _last(lines: Iterable[dict[str, Any]]) -> float:
    *_, last = lines
    return int(last["__MONOTONIC_TIMESTAMP"]) / 1e6
