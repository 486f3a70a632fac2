"""What is made of the rules in libvirt's nftables tables: what lacks, what is lost, what goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_interface

from tests.definitions import definition
from vnetd.backends.libvirt import network_xml
from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Drift
from vnetd.core.keep import rules
from vnetd.core.keep.rules import EditNftables, RestoreRules, RulesLeftOver
from vnetd.core.model import Chain, Definition, Family, IfName, Libvirt, Network, Ruleset, World
from vnetd.core.rules import iptables, nftables
from vnetd.core.rules.nftables import MARK, Findings

LAB = network_xml.parse(definition("nat", 1))
OUT = Chain(Family.IPV4, nftables.TABLE, "guest_output")
NAT = Chain(Family.IPV4, nftables.TABLE, "guest_nat")
LIBVIRT = Libvirt("11.3.0", 1, {LAB.name: Network(LAB.name, LAB, LAB, autostart=True)})
ACCEPT, REJECT = nftables.network_rules(LAB)[OUT]


def right() -> Ruleset:
    """As libvirt leaves it: handles grow with time, and each rule went to the head of its chain."""
    rules = {chain: nftables.network_rules(LAB).get(chain, ()) for chain in nftables.CHAINS}
    rules |= {chain: nftables.JUMPS for chain in nftables.CHAINS if chain.name == "forward"}
    handles = {chain: tuple(range(9, 9 - len(found), -1)) for chain, found in rules.items()}
    remembered = {(chain, handle) for chain, found in handles.items() for handle in found}
    return Ruleset(World.NFTABLES, rules, handles=handles, remembered=frozenset(remembered))


def with_chain(chain: Chain, *rules: tuple[int, str]) -> Ruleset:
    ruleset = right()
    return replace(
        ruleset,
        chains={**ruleset.chains, chain: tuple(rule for _, rule in rules)},
        handles={**ruleset.handles, chain: tuple(handle for handle, _ in rules)},
    )


def surplus(ruleset: Ruleset) -> list[int]:
    return [item.handle for item in nftables.examine([LAB], ruleset).surplus]


def test_what_libvirt_made_is_right() -> None:
    assert nftables.examine([LAB], right()) == Findings()


class Counted(tuple[str, ...]):
    """Rules of a chain, and how often somebody goes through them."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        Counted.looks += 1
        return super().__iter__()


def test_more_networks_need_no_more_looks_at_a_chain() -> None:
    looks = []
    for count in (2, 40):
        networks = [
            replace(
                LAB,
                name=f"n{number}",
                bridge=IfName(f"vb{number}"),
                addresses=(ip_interface(f"10.0.{number}.1/24"),),
            )
            for number in range(count)
        ]
        chains = {
            chain: Counted(r for n in networks for r in nftables.network_rules(n).get(chain, ()))
            for chain in nftables.CHAINS
        }
        chains |= {c: Counted(nftables.JUMPS) for c in nftables.CHAINS if c.name == "forward"}
        handles = {chain: tuple(range(len(found), 0, -1)) for chain, found in chains.items()}
        Counted.looks = 0
        found = nftables.examine(networks, replace(right(), chains=chains, handles=handles))
        assert not found.lacking
        looks.append(Counted.looks)
    assert looks[0] == looks[1] > 0


def test_a_lost_rule_lacks_until_a_copy_stands_in_and_stays_lost() -> None:
    broken = with_chain(OUT, (8, REJECT))
    found = nftables.examine([LAB], broken)
    assert found.lacking[LAB.name][OUT].missing == (ACCEPT,)
    assert found.lost == ((OUT, ACCEPT),)
    standing_in = with_chain(OUT, (11, ACCEPT + MARK), (10, REJECT + MARK), (8, REJECT))
    assert nftables.examine([LAB], standing_in) == Findings(lost=((OUT, ACCEPT),))


def test_copies_go_when_libvirts_own_are_back() -> None:
    back = with_chain(OUT, (13, ACCEPT), (12, REJECT), (11, ACCEPT + MARK), (10, REJECT + MARK))
    assert surplus(back) == [11, 10]


def test_of_several_the_one_that_libvirt_will_delete_stays() -> None:
    assert surplus(with_chain(OUT, (20, REJECT), (9, ACCEPT), (8, REJECT))) == [20]
    forgotten = replace(
        with_chain(OUT, (20, ACCEPT), (19, REJECT), (9, ACCEPT), (8, REJECT)),
        remembered=frozenset(),
    )
    assert surplus(forgotten) == [9, 8]


def test_an_accept_behind_its_reject_lacks() -> None:
    found = nftables.examine([LAB], with_chain(OUT, (8, REJECT), (9, ACCEPT)))
    assert found.lacking[LAB.name][OUT].misplaced


def test_rules_of_what_is_gone_go_but_not_while_libvirt_writes_and_no_foreign_ones() -> None:
    dead = [
        (30, "ip saddr 10.9.0.0/24 iif 69 counter accept"),
        (31, "iif 69 counter reject"),
        (32, 'iifname "uplink0" ip saddr 192.0.2.1 accept'),
        (33, "iif 69 drop"),
    ]
    ruleset = with_chain(OUT, (9, ACCEPT), (8, REJECT), *dead)
    assert surplus(ruleset) == [30, 31]
    assert surplus(replace(ruleset, settled=False)) == []
    of_others = "ip saddr 10.9.0.0/24 ip daddr != 10.9.0.0/24 counter masquerade"
    own = list(zip(right().handles[NAT], right().chains[NAT], strict=True))
    assert surplus(with_chain(NAT, *own, (40, of_others))) == [40]


def test_a_missing_table_is_made_again_in_one_script() -> None:
    empty = Ruleset(World.NFTABLES)
    found = nftables.examine([LAB], empty)
    lines = nftables.script([LAB], empty, delete=(), lacking=found.lacking)
    assert lines[0] == "add table ip libvirt_network"
    assert sum(line.startswith("add chain") for line in lines) == 10
    # inserted at the head, so the last comes first
    jumps = [line.split()[-1] for line in lines if line.startswith("insert") and "jump" in line]
    assert jumps == ["guest_output", "guest_input", "guest_cross"] * 2
    assert sum(line.endswith(MARK) for line in lines) == sum(
        len(rules) for rules in nftables.network_rules(LAB).values()
    )


def test_the_scaffold_goes_when_all_is_back_with_what_leads_to_it_or_without() -> None:
    scaffold = Chain(Family.IPV4, nftables.TABLE, nftables.SCAFFOLD)
    forward = Chain(Family.IPV4, nftables.TABLE, "forward")
    left = with_chain(scaffold, (40, ACCEPT + MARK))
    jumps = list(zip(left.handles[forward], left.chains[forward], strict=True))
    jump = (41, f"counter jump {nftables.SCAFFOLD}{MARK}")
    led_to = replace(
        left,
        chains={**left.chains, forward: tuple(rule for _, rule in (jump, *jumps))},
        handles={**left.handles, forward: tuple(handle for handle, _ in (jump, *jumps))},
    )
    for ruleset, handles in ((left, [0]), (led_to, [41, 0])):
        delete = nftables.examine([LAB], ruleset).surplus
        assert [item.handle for item in delete] == handles
        lines = nftables.deletions(delete)
        assert lines[-2:] == (
            "flush chain ip libvirt_network vnetd",
            "delete chain ip libvirt_network vnetd",
        )


def test_the_scaffold_says_what_libvirt_says_and_is_led_to_once() -> None:
    lines = nftables.scaffold([LAB], right())
    added = [line.partition(" vnetd ")[2] for line in lines if line.startswith("add rule ip ")]
    own = nftables.network_rules(LAB)
    order = ("guest_cross", "guest_input", "guest_output")
    chains = [Chain(Family.IPV4, nftables.TABLE, name) for name in order]
    assert added == [rule + MARK for chain in chains for rule in own[chain]]
    assert sum(line.startswith("insert rule ip ") for line in lines) == 1


def test_copies_come_with_the_scaffold_in_one_transaction() -> None:
    """libvirt may be installing its rules already, rejects first."""
    empty = Ruleset(World.NFTABLES)
    drift = [x for x in rules.diff(LIBVIRT, [LAB], empty, None) if isinstance(x, Drift)]
    (action,) = rules.plan(drift, LIBVIRT, empty, None, {})
    assert isinstance(action, EditNftables)
    assert set(nftables.scaffold([LAB], empty)) < set(action.script)


def test_copies_and_scaffold_stand_until_libvirt_has_settled() -> None:
    back = with_chain(OUT, (13, ACCEPT), (12, REJECT), (11, ACCEPT + MARK), (10, REJECT + MARK))
    assert any(isinstance(x, RulesLeftOver) for x in rules.diff(LIBVIRT, [LAB], back, None))
    assert list(rules.diff(LIBVIRT, [LAB], replace(back, settled=False), None)) == []


def moved(*there: Ruleset) -> Ruleset:
    """libvirt writes to iptables now, where all stands; there: what is left elsewhere."""
    return Ruleset(World.IPTABLES_NFT, iptables.compose([LAB]), elsewhere=there)


def planned(ruleset: Ruleset, kept: Sequence[Definition] = (LAB,)) -> list[Action]:
    chains = rules.expected(kept, False, ruleset, None)
    found = [x for x in rules.diff(LIBVIRT, kept, ruleset, chains) if isinstance(x, Drift)]
    return list(rules.plan(found, LIBVIRT, ruleset, chains, {}))


def conflicts(ruleset: Ruleset) -> list[Drift | Conflict]:
    return list(rules.diff(LIBVIRT, [LAB], ruleset, rules.expected([LAB], False, ruleset, None)))


def test_what_libvirt_forgot_when_it_moved_to_iptables_goes_and_nothing_else() -> None:
    foreign = 'iifname "uplink0" ip saddr 192.0.2.1 accept'
    forgotten = replace(
        with_chain(OUT, (34, foreign), (9, ACCEPT), (8, REJECT + MARK), (7, "iif 69 drop")),
        remembered=frozenset(),
    )
    (action,) = planned(moved(forgotten))
    assert isinstance(action, EditNftables)
    path = "delete rule ip libvirt_network guest_output handle"
    ours = [line for line in action.script if line.startswith(path)]
    assert ours == [f"{path} 9", f"{path} 8"]
    assert not any(" forward " in line for line in action.script)
    own = sum(len(found) for found in nftables.network_rules(LAB).values())
    assert len(action.script) == own


def test_where_rules_lack_in_iptables_these_come_first() -> None:
    forgotten = replace(right(), remembered=frozenset())
    ruleset = replace(moved(forgotten), chains={})
    assert [type(action) for action in planned(ruleset)] == [RestoreRules]


def test_what_libvirt_remembers_is_its_own_to_delete_and_what_is_ignored_stays() -> None:
    assert planned(moved(right())) == []
    (told,) = conflicts(moved(right()))
    assert "left in nftables" in str(told)
    assert planned(moved(replace(right(), remembered=frozenset())), kept=()) == []
