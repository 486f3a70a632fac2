"""A policy made of what a host has is that host's policy."""

from __future__ import annotations

from tests.definitions import DEFINITIONS, definition
from vnetd.backends.libvirt import network_xml
from vnetd.core.keep.networks import differences
from vnetd.core.model import Definition, Mode, Network
from vnetd.core.policy import SUPPORTED_MODES, PolicyText, parse, render


def networks() -> list[Network]:
    found = []
    for number, name in enumerate(DEFINITIONS):
        parsed = network_xml.parse(definition(name, number))
        found.append(Network(name, parsed, None, autostart=False))
    return found


def test_every_form_of_network_is_its_own_policy() -> None:
    for network in networks():
        assert network.config is not None
        policy = parse([PolicyText("imported", render([network]))])
        if network.config.mode in SUPPORTED_MODES:
            (want,) = policy.networks.values()
            assert differences(want, network.config) == ()
            assert want.autostart is network.autostart


def test_names_that_need_quotes() -> None:
    name = 'a "b" c.d'
    network = Network(name, Definition(name, Mode.ISOLATED), None, autostart=True)
    policy = parse([PolicyText("imported", render([network]))])
    assert list(policy.networks) == [name]


def test_a_mode_that_no_policy_has_is_told() -> None:
    network = Network("vf", Definition("vf", Mode.HOSTDEV), None, autostart=True)
    text = render([network])
    assert "of mode hostdev" in text
    assert parse([PolicyText("imported", text)]).networks == {}
