"""nft monitor trace's text → where each packet went. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LINE = re.compile(r"trace id (\w+) (\w+) (\S+) (\S+) (.*)")
_HANDLE = re.compile(r"rule handle (\d+)")
_COUNTER = re.compile(r"counter packets \d+ bytes \d+ ")
_VERDICT = re.compile(r"\(verdict (\w+)")


@dataclass(frozen=True, slots=True)
class Traced:
    """One packet. drop: (family, table, chain, rule or policy, handle) that ended it."""

    packet: str
    chains: tuple[str, ...]
    drop: tuple[str, str, str, str, int] | None


def parse(lines: Iterable[str]) -> list[Traced]:
    packets: dict[str, str] = {}
    chains: dict[str, dict[str, None]] = {}
    drops: dict[str, tuple[str, str, str, str, int]] = {}
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        id_, family, table, chain, rest = found.groups()
        chains.setdefault(id_, {})[f"{family} {table} {chain}"] = None
        if rest.startswith("packet:"):
            packets.setdefault(id_, rest.removeprefix("packet:").strip())
            continue
        verdict = _VERDICT.search(rest)
        word = verdict[1] if verdict else rest.removeprefix("policy ").split()[0]
        if word == "drop":
            handle = _HANDLE.search(rest)
            what = _COUNTER.sub("", rest.partition(" (verdict")[0].removeprefix("rule ")).strip()
            drops[id_] = (family, table, chain, what, int(handle[1]) if handle else 0)
    return [Traced(packets.get(i, ""), tuple(c), drops.get(i)) for i, c in chains.items()]
