"""Other people's tables and rules in a box, of which vnetd must change nothing.

A table in each family of nf_tables, and rules in libvirt's chains of iptables and in the built-in
ones beside them. A test need not know of them:

- "nft flush ruleset" puts the tables back in the transaction that takes them away, so that whatever
  vnetd makes of a flush it makes of it with the canary there;
- rules of iptables that a test flushes ("iptables -t nat -F", "-F FORWARD") may be gone after it;
  all others must stand, each once, and none may come back by itself. They are put there again for
  the next test.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.machine import Machine

NAME = "canary"
_FAMILIES = ("ip", "ip6", "inet", "arp", "bridge", "netdev")
_TABLES = """\
add table ip canary
add set ip canary s { type ipv4_addr; flags interval; elements = { 192.0.2.64/28 }; }
add chain ip canary f { type filter hook forward priority -5; }
add rule ip canary f ip saddr @s drop
add chain ip canary p { type nat hook postrouting priority 90; }
add rule ip canary p ip saddr 192.0.2.77 snat to 192.0.2.78
add table ip6 canary
add chain ip6 canary i { type filter hook input priority 5; }
add rule ip6 canary i ip6 saddr 2001:db8::77 drop comment "not yours"
add table inet canary
add map inet canary m { type ipv4_addr : verdict; elements = { 192.0.2.77 : drop }; }
add chain inet canary f { type filter hook forward priority 20; }
add rule inet canary f ip saddr vmap @m
add chain inet canary empty
add table arp canary
add chain arp canary i { type filter hook input priority 0; }
add rule arp canary i arp operation 9 drop
add table bridge canary
add chain bridge canary f { type filter hook forward priority 0; }
add rule bridge canary f ether type 0x1234 drop
add table netdev canary
add chain netdev canary i { type filter hook ingress device "uplink0" priority 0; }
add rule netdev canary i ip saddr 192.0.2.77 drop
"""
_FLUSH_FILE = "/run/box/flush-ruleset"
_FLUSH_RULESET = "nft flush ruleset"

# (table, chain, how to put it there, where): in libvirt's own chains at either end
_PLACES = (
    ("filter", "INPUT", "-A"),
    ("filter", "FORWARD", "-I 2"),
    ("filter", "LIBVIRT_FWI", "-A"),
    ("filter", "LIBVIRT_FWO", "-I"),
    ("filter", "LIBVIRT_INP", "-A"),
    ("nat", "POSTROUTING", "-A"),
    ("nat", "LIBVIRT_PRT", "-I"),
    ("mangle", "LIBVIRT_PRT", "-A"),
)
_TOOLS = {"iptables": "192.0.2.77/32", "ip6tables": "2001:db8::77/128"}

# Of what a test runs: what empties chains of iptables.
_FLUSHES = re.compile(r"\b(ip6?tables)\S* (?:-t (\w+) )?(?:-F|--flush)(?: ([A-Z_]+))?")
_FLUSHES_ALL = re.compile(r"flush ruleset|delete table|(?:restore|firewall-cmd|firewalld)\b")

_Rule = tuple[str, str, str]
"""(tool, table, chain) of one; there is one in each chain."""


class Canary:
    def __init__(self, box: Machine, variant: str) -> None:
        """variant: of iptables, nft or legacy."""
        self._box = box
        self._variant = variant
        self._tables = ""
        self._rules: set[_Rule] = set()
        self._flushed: set[tuple[str, str, str]] = set()
        self._flushed_all = False

    def settle(self) -> None:
        """Its tables, for as long as the box stands."""
        self._box.write(_FLUSH_FILE, f"flush ruleset\n{_TABLES}")
        self._box.run("nft", "-f", "-", stdin=_TABLES)
        self._tables = self._listed()

    def perch(self) -> None:
        """Its rules, wherever libvirt has chains; before each test."""
        chains, present = self._saved()
        for tool, address in _TOOLS.items():
            text = ""
            for table in ("filter", "mangle", "nat"):
                lines = [
                    f"{how[:2]} {chain}{how[2:]} -s {address} -m comment --comment {NAME} -j RETURN"
                    for of_table, chain, how in _PLACES
                    if of_table == table and (tool, table, chain) in chains
                    if (tool, table, chain) not in present
                ]
                if lines:
                    text += "".join(f"{line}\n" for line in (f"*{table}", *lines, "COMMIT"))
            if text:
                self._box.run(self._tool(tool, "restore"), "--noflush", "--wait", "5", stdin=text)
        self._rules = set(self._saved()[1])
        self._flushed, self._flushed_all = set(), False

    def sparing(self, argv: Sequence[str]) -> list[str]:
        """What to run instead of this."""
        for words in (" ".join(argv), *argv):
            for tool, table, chain in _FLUSHES.findall(words):
                self._flushed.add((tool, table or "filter", chain))
            self._flushed_all |= bool(_FLUSHES_ALL.search(words))
        if list(argv) == _FLUSH_RULESET.split():
            return ["nft", "-f", _FLUSH_FILE]
        return [word.replace(_FLUSH_RULESET, f"nft -f {_FLUSH_FILE}") for word in argv]

    def check(self) -> None:
        """Raises AssertionError where anything of it has changed."""
        assert self._listed() == self._tables, "other people's nf_tables have changed"
        present = self._saved()[1]
        assert set(present.values()) <= {1}, f"other people's rules have doubled: {present}"
        assert set(present) <= self._rules, f"came back: {set(present) - self._rules}"
        lost = {rule for rule in self._rules - set(present) if not self._is_flushed(*rule)}
        assert not lost, f"lost, and no flush of the test's took them: {lost}"

    def _is_flushed(self, tool: str, table: str, chain: str) -> bool:
        return self._flushed_all or not {(tool, table, ""), (tool, table, chain)}.isdisjoint(
            self._flushed
        )

    def _listed(self) -> str:
        """Of a table that was made again the number is another, and all else is the same."""
        script = f"for family in {' '.join(_FAMILIES)}; do nft -a list table $family {NAME}; done"
        text = self._box.attempt("sh", "-c", script).stdout
        return re.sub(r"^(table .*) # handle \d+$", r"\1", text, flags=re.MULTILINE)

    def _saved(self) -> tuple[set[_Rule], Counter[_Rule]]:
        """All chains of tables that libvirt has chains in, and where the canary's rules are."""
        chains, rules = set(), Counter[_Rule]()
        for tool in _TOOLS:
            text = self._box.attempt(self._tool(tool, "save")).stdout
            for part in text.split("*")[1:]:
                table, _, body = part.partition("\n")
                if "LIBVIRT_" not in body:
                    continue
                chains |= {(tool, table, name) for name in re.findall(r"^:(\S+)", body, re.M)}
                found = re.findall(rf"^-A (\S+) .*--comment {NAME}\b", body, re.M)
                rules.update((tool, table, name) for name in found)
        return chains, rules

    def _tool(self, tool: str, verb: str) -> str:
        return f"{tool}-{self._variant}-{verb}"
