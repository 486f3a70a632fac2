"""[vnetd] history: how much of it is kept."""

from __future__ import annotations

from dataclasses import dataclass

from vnetd.core.policy.toml_table import Table


@dataclass(frozen=True, slots=True)
class Retention:
    """Whichever is less."""

    records: int = 10_000
    days: int = 365


def read(section: Table) -> Retention:
    kept = {}
    for key, most in (("records", 1_000_000), ("days", 36_500)):
        right = f"write a number from 1 to {most}"
        number = section.get(key, int, right)
        if number is not None and not 1 <= number <= most:
            section.wrong(key, f"{number} is out of range", right)
        elif number is not None:
            kept[key] = number
    section.close()
    return Retention(**kept)
