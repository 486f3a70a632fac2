"""What others put in front of libvirt's rules, as the guard repeats it."""

from __future__ import annotations

import pytest

from vnetd.core.model import Chain, Family, Ruleset, World
from vnetd.core.rules import exceptions

OWN = {
    Chain(Family.IPV4, "filter", "FORWARD"): ("-j LIBVIRT_FWX", "-j LIBVIRT_FWI", "-j LIBVIRT_FWO"),
    Chain(Family.IPV4, "filter", "LIBVIRT_FWI"): ("-d 10.77.0.0/24 -o vblab -j ACCEPT",),
    Chain(Family.IPV4, "nat", "POSTROUTING"): ("-j LIBVIRT_PRT",),
}
VBLAB = 'meta nfproto ipv4 oifname "vblab"'
DOCKER = ("-j DOCKER-USER", "-j DOCKER-FORWARD")


def ruleset(**chains: tuple[str, ...]) -> Ruleset:
    """Rules in front of libvirt's own, by chain; DOCKER_USER is DOCKER-USER."""
    found = dict(OWN)
    for name, rules in chains.items():
        chain = Chain(Family.IPV4, "filter", name.replace("DOCKER_", "DOCKER-"))
        found[chain] = (*rules, *OWN.get(chain, ()))
    return Ruleset(World.IPTABLES_NFT, found)


def passed(**chains: tuple[str, ...]) -> list[str]:
    found = exceptions.passed(ruleset(**chains), OWN, ["vblab"])
    return [" ".join(str(match) for match in matches) for matches in found]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            "-d 10.77.0.20/32 -i eth0 -p tcp -m tcp --dport 22 -j ACCEPT",
            ['ip daddr 10.77.0.20 iifname "eth0" meta l4proto tcp th dport 22'],
        ),
        ("-o vblab -j ACCEPT", ['meta nfproto ipv4 oifname "vblab"']),
        ("-i vb+ -j ACCEPT", ['meta nfproto ipv4 iifname "vb*"']),
        ("! -s 10.0.0.0/8 -j ACCEPT", ["ip saddr != 10.0.0.0/8"]),
        # what the guard cannot say makes the exception wider, never narrower
        ("-d 10.77.0.20/32 -m mark --mark 0x1 -j ACCEPT", ["ip daddr 10.77.0.20"]),
        (
            "-d 10.77.0.20/32 -p tcp -m multiport --dports 1,2 -j ACCEPT",
            ["ip daddr 10.77.0.20 meta l4proto tcp"],
        ),
        ("-d 10.77.0.20/32 -p esp -j ACCEPT", ["ip daddr 10.77.0.20"]),
        # these concern no bridge of vnetd's, no first packet, or nothing that is accepted
        ("-i eth0 -o eth1 -j ACCEPT", []),
        ("-i vbother -o eth1 -j ACCEPT", []),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", []),
        ("-o vblab -m conntrack --ctstate DNAT -j ACCEPT", []),
        ("-o vblab -j DROP", []),
        ("-o vblab -j LOG", []),
        # words that look like a target, in what others wrote for people
        ('-o vblab -j LOG --log-prefix "then -j ACCEPT "', []),
        ('-o vblab -m comment --comment "was -j DROP" -j ACCEPT', [VBLAB]),
        ('-o vblab -m comment --comment "-j" -j ACCEPT', [VBLAB]),
        ('-o vblab -m comment --comment "\\"-j ACCEPT\\"" -j DROP', []),
        ('-o vblab -j ACCEPT -m comment --comment "not -j DROP"', [VBLAB]),
    ],
)
def test_a_rule_in_front(rule: str, expected: list[str]) -> None:
    assert passed(FORWARD=(rule,)) == expected


def test_chains_of_others_are_followed() -> None:
    found = passed(
        FORWARD=DOCKER,
        DOCKER_USER=("-s 192.0.2.0/24 -j MINE", "-j RETURN"),
        MINE=("-d 10.77.0.0/24 -j ACCEPT",),
        DOCKER_FORWARD=("-i docker0 ! -o docker0 -j ACCEPT", "-i docker0 -o docker0 -j ACCEPT"),
    )
    assert found == [
        "ip saddr 192.0.2.0/24 ip daddr 10.77.0.0/24",
        'meta nfproto ipv4 iifname "docker0" oifname != "docker0"',
    ]


def test_chains_that_call_each_other_come_to_an_end() -> None:
    assert len(passed(FORWARD=("-j A",), A=("-j A", "-o vblab -j ACCEPT"))) == 1


def test_rules_behind_libvirts_do_not_count() -> None:
    chain = Chain(Family.IPV4, "filter", "FORWARD")
    rules = Ruleset(World.IPTABLES_NFT, {**OWN, chain: (*OWN[chain], "-o vblab -j ACCEPT")})
    assert exceptions.passed(rules, OWN, ["vblab"]) == []


def test_foreign_rules_in_libvirts_own_chains_count() -> None:
    assert passed(LIBVIRT_FWI=("-d 10.77.0.9/32 -j ACCEPT",)) == ["ip daddr 10.77.0.9"]


def test_exemptions_from_nat() -> None:
    chain = Chain(Family.IPV4, "nat", "POSTROUTING")
    rules = (
        "-s 10.77.0.0/24 -d 10.8.0.0/16 -j ACCEPT",
        "-s 10.9.0.0/24 -j MASQUERADE",
        *OWN[chain],
    )
    found = exceptions.untranslated(Ruleset(World.IPTABLES_NFT, {chain: rules}), OWN, ["vblab"])
    assert [[str(match) for match in matches] for matches in found] == [
        ["ip saddr 10.77.0.0/24", "ip daddr 10.8.0.0/16"]
    ]
