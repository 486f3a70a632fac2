"""core/rules against the rules that real libvirts have installed; tests/cases/record_rules.py
recorded them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.record_rules import ALL, RULES, in_any_order
from tests.definitions import DEFINITIONS, definition
from vnetd.backends.firewalls import iptables_save
from vnetd.backends.libvirt import network_xml
from vnetd.core.model import Chain, Definition, Family, Ruleset, World
from vnetd.core.rules import iptables, nftables

Rules = dict[Chain, tuple[str, ...]]
BACKENDS = sorted(path for path in RULES.glob("*/*"))


def parsed(name: str, number: int = 1) -> Definition:
    return network_xml.parse(definition(name, number))


def of_iptables(text: str) -> Rules:
    ipv4, ipv6 = text.split("# ip6tables-save\n")
    chains = iptables_save.parse(ipv4, Family.IPV4) | iptables_save.parse(ipv6, Family.IPV6)
    libvirts = {*iptables.BUILTIN_CHAINS, *iptables.PRIVATE_CHAINS}
    return {chain: rules for chain, rules in chains.items() if chain in libvirts}


def of_nftables(text: str) -> Rules:
    found: dict[Chain, list[str]] = {}
    family, chain = Family.IPV4, Chain(Family.IPV4, "", "")
    for line in text.splitlines():
        match line.split():
            case ["table", name, _, "{"]:
                family = Family(name)
            case ["chain", name, "{"]:
                chain = Chain(family, nftables.TABLE, name)
                found[chain] = []
            case [] | ["}"] | ["type", *_]:
                pass
            case _:
                found[chain].append(line.strip())
    return {chain: tuple(rules) for chain, rules in found.items()}


def expected_of_nftables(networks: list[Definition]) -> Rules:
    """As libvirt has them when these were started, the last of them first."""
    found: dict[Chain, list[str]] = {chain: [] for chain in nftables.CHAINS}
    for family in Family:
        found[Chain(family, nftables.TABLE, "forward")] = list(nftables.JUMPS)
    for network in networks:
        for chain, rules in nftables.network_rules(network).items():
            found[chain] += rules
    return {chain: tuple(rules) for chain, rules in found.items()}


def test_every_backend_and_definition_is_recorded() -> None:
    kinds = [(path.parent.name, path.name) for path in BACKENDS]
    assert kinds == [("11.3.0", "iptables"), ("11.3.0", "nftables"), ("9.0.0", "iptables")]
    for path in BACKENDS:
        assert {file.name for file in path.iterdir()} == {*DEFINITIONS, ALL}


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda path: f"{path.parent.name}-{path.name}")
@pytest.mark.parametrize("name", [*DEFINITIONS, ALL])
def test_what_libvirt_installed_is_what_is_expected(backend: Path, name: str) -> None:
    text = (backend / name).read_text()
    networks = [parsed(name)] if name != ALL else _all()
    if backend.name == "iptables":
        assert of_iptables(text) == iptables.compose(networks)
    else:
        assert of_nftables(text) == expected_of_nftables(networks)


@pytest.mark.parametrize("backend", [path for path in BACKENDS if path.name == "iptables"])
def test_the_order_between_networks_is_read_off_the_rules(backend: Path) -> None:
    ruleset = Ruleset(World.IPTABLES_NFT, of_iptables((backend / ALL).read_text()))
    ruled = [n for n in sorted(_all(), key=lambda n: n.name) if iptables.network_rules(n)]
    assert iptables.compose(iptables.order(ruled, ruleset)) == ruleset.chains


def _all() -> list[Definition]:
    return [parsed(name, number) for number, name in enumerate(in_any_order())][::-1]
