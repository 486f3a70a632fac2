"""libvirt's rules in a box, each as a value: read, taken out, copied and moved by others' tools."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.lab.canary import NAME
from tests.lab.hypervisor import Hypervisor

TABLE = "libvirt_network"
# What tests/definitions.py calls the bridge, and the addresses, of its network with this number.
_NUMBER = re.compile(r"vbm(\d+)\b|10\.6[01]\.(\d+)\.|fd60:(\d+)?::")


@dataclass(frozen=True, slots=True)
class Rule:
    """number: of the network; None for a jump, which is for all. tool: iptables' name, or nft's
    name of the family. handle: nft's.
    """

    number: int | None
    tool: str
    table: str
    chain: str
    text: str
    handle: int = 0

    @property
    def place(self) -> tuple[str, str, str]:
        return self.tool, self.table, self.chain


def of_iptables(box: Hypervisor) -> list[Rule]:
    return [
        rule
        for rule in _all_of_iptables(box)
        if "LIBVIRT_" in f"{rule.chain} {rule.text}" and NAME not in rule.text
    ]


def _all_of_iptables(box: Hypervisor) -> list[Rule]:
    found = []
    for tool in ("iptables", "ip6tables"):
        table = ""
        for line in box.run(f"{tool}-save").splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith("-A "):
                chain, _, text = line[3:].partition(" ")
                found.append(Rule(_number(text), tool, table, chain, text))
    return found


def of_nftables(box: Hypervisor) -> list[Rule]:
    found = []
    for family in ("ip", "ip6"):
        chain = ""
        listed = box.attempt("nft", "-a", "-s", "list", "table", family, TABLE).stdout
        for line in listed.splitlines():
            if line.startswith("\tchain "):
                chain = line.split()[1]
            elif match := re.fullmatch(r"\t\t(.*) # handle (\d+)", line):
                text = match[1]
                found.append(Rule(_number(text), family, TABLE, chain, text, int(match[2])))
    return found


def _number(text: str) -> int | None:
    match = _NUMBER.search(text)
    if match is None:
        return None
    return int(next((digits for digits in match.groups() if digits), "0"))  # fd60:0:: is fd60::


def neighbours(rules: Iterable[Rule]) -> list[tuple[Rule, Rule]]:
    """Rules of one network, or jumps, that stand next to each other; each rule in one pair."""
    chosen: list[tuple[Rule, Rule]] = []
    taken: set[Rule] = set()
    for first, second in pairwise(rules):
        alike = (first.place, first.number) == (second.place, second.number)
        if alike and first not in taken:
            chosen.append((first, second))
            taken |= {first, second}
    return chosen


# -- iptables: one transaction for each table


def delete_in_iptables(box: Hypervisor, rules: Sequence[Rule]) -> None:
    _restore(box, rules, {rule: (f"-D {rule.chain} {rule.text}",) for rule in rules})


def copy_in_iptables(box: Hypervisor, rules: Sequence[Rule]) -> None:
    """To the head and to the end of its chain."""
    _restore(
        box,
        rules,
        {rule: (f"-I {rule.chain} {rule.text}", f"-A {rule.chain} {rule.text}") for rule in rules},
    )


def swap_in_iptables(box: Hypervisor, pairs: Sequence[tuple[Rule, Rule]]) -> None:
    chains: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for rule in _all_of_iptables(box):
        chains[rule.place].append(rule.text)
    edits = {}
    for first, second in pairs:
        at = chains[first.place].index(first.text) + 1
        name, text = second.chain, second.text
        edits[second] = (f"-D {name} {text}", f"-I {name} {at} {text}")
    _restore(box, [second for _, second in pairs], edits)


def _restore(box: Hypervisor, rules: Sequence[Rule], edits: Mapping[Rule, tuple[str, ...]]) -> None:
    for tool in sorted({rule.tool for rule in rules}):
        text = ""
        for table in sorted({rule.table for rule in rules if rule.tool == tool}):
            lines = [ln for r in rules if (r.tool, r.table) == (tool, table) for ln in edits[r]]
            text += "".join(f"{line}\n" for line in (f"*{table}", *lines, "COMMIT"))
        box.run(f"{tool}-restore", "--noflush", "--wait", "30", stdin=text)


# -- nftables: one transaction


def delete_in_nftables(box: Hypervisor, rules: Sequence[Rule]) -> None:
    _nft(box, (f"delete rule {_chain(rule)} handle {rule.handle}" for rule in rules))


def copy_in_nftables(box: Hypervisor, rules: Sequence[Rule]) -> None:
    verbs = ("insert", "add")
    _nft(box, (f"{verb} rule {_chain(rule)} {rule.text}" for rule in rules for verb in verbs))


def swap_in_nftables(box: Hypervisor, pairs: Sequence[tuple[Rule, Rule]]) -> None:
    lines = []
    for first, second in pairs:
        lines.append(f"delete rule {_chain(second)} handle {second.handle}")
        lines.append(f"insert rule {_chain(first)} handle {first.handle} {second.text}")
    _nft(box, lines)


def _chain(rule: Rule) -> str:
    return f"{rule.tool} {rule.table} {rule.chain}"


def _nft(box: Hypervisor, lines: Iterable[str]) -> None:
    box.run("nft", "-f", "-", stdin="".join(f"{line}\n" for line in lines))
