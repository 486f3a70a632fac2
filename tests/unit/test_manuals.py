"""The manuals and the code name the same options, commands, keys, metrics and messages."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vnetd.__main__
import vnetd.cli.main
from tests.unit.test_metrics import status
from vnetd.cli import codes
from vnetd.core.metrics import Counts, families
from vnetd.core.model import Source, State
from vnetd.core.policy import PolicyText, parse
from vnetd.entries import Message
from vnetd.errors import PolicyError

TREE = Path(__file__).parents[2]


def manual(name: str) -> str:
    """As it is read, but for its requests."""
    text = (TREE / "packaging/man" / name).read_text()
    return re.sub(r"\\f[A-Z]", "", text).replace("\\-", "-")


def section(text: str, title: str) -> str:
    return text.partition(f".SH {title}\n")[2].partition("\n.SH ")[0]


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (flag for flag in action.option_strings if flag not in ("-h", "--help"))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options(command)


@pytest.mark.parametrize(
    ("name", "parser"),
    [("vnetd.8", vnetd.__main__.parser()), ("vnetctl.1", vnetd.cli.main.parser())],
)
def test_options(name: str, parser: argparse.ArgumentParser) -> None:
    known = set(options(parser))
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", manual(name)))
    assert {flag for flag in known if flag.startswith("--")} - said <= {"--lines", "--version"}
    assert said <= known | {"--config"}


def test_commands() -> None:
    (commands,) = (
        action.choices
        for action in vnetd.cli.main.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    said = re.findall(r"^\.TP\n\.B\w* \"?([a-z]+)", section(manual("vnetctl.1"), "COMMANDS"), re.M)
    assert set(said) == set(commands)


def test_exit_codes() -> None:
    said = re.findall(r"^\.B (\d)$", section(manual("vnetctl.1"), "EXIT STATUS"), re.M)
    known = [value for name, value in vars(codes).items() if name.isupper()]
    assert sorted(map(int, said)) == sorted([*known, 2]), "2 is argparse's own"


UNKNOWN = """
[vnetd]
zzz = 1
[vnetd.history]
zzz = 1
[networks.a]
zzz = 1
forwards = [{ zzz = 1 }]
routes = [{ zzz = 1 }]
[networks.a.dhcp]
zzz = 1
hosts = [{ zzz = 1 }]
[bridges.b]
zzz = 1
ports = [{ zzz = 1, vlan = { zzz = 1 } }]
"""


def test_keys_of_a_policy() -> None:
    """Beside a key that is none stand those that are."""
    with pytest.raises(PolicyError) as refused:
        parse([PolicyText("policy", UNKNOWN)])
    known = {
        key
        for problem in refused.value.problems
        if problem.right.startswith("known are ")
        for key in problem.right.removeprefix("known are ").split(", ")
    }
    assert {"mode", "mtu", "forwards", "sources", "via", "domain", "tagged", "records"} <= known
    text = manual("vnetd.toml.5")
    assert {key for key in known if not re.search(rf"\b{key}\b", text)} == set()
    headed = re.findall(r"^\.TP\n\.BR? (.+)", text, re.M)
    said = {word for line in headed for word in re.findall(r"[a-z_]+", line)}
    assert said - {"dhcp", "history"} <= known


def test_metrics() -> None:
    known = {family.name for family in families(Counts(), status(), passes=1)}
    known = {name.removesuffix("_total") for name in known}
    text = section(manual("vnetd.8"), "METRICS")
    said = {name.removesuffix("_total") for name in re.findall(r"vnetd_[a-z_]+", text)}
    assert said == known
    assert [source for source in Source if source.value not in text] == []


def test_states_and_messages() -> None:
    text = manual("vnetd.8")
    said = re.findall(r"^\.TP\n\.B (\w+)", section(text, "STATES"), re.M)
    assert set(said) == {state.value for state in State}
    catalog = (TREE / "systemd/vnetd.catalog").read_text()
    ids = {message.value for message in Message}
    assert set(re.findall(r"\b[0-9a-f]{32}\b", text)) == ids
    assert set(re.findall(r"\b[0-9a-f]{32}\b", catalog)) == ids


def test_the_installed_policy_is_right_without_its_comment_signs() -> None:
    text = (TREE / "etc/vnetd.toml").read_text()
    assert parse([PolicyText("vnetd.toml", text)]).networks == {}
    policy = parse([PolicyText("vnetd.toml", re.sub(r"^#(?=[^ \n]|  )", "", text, flags=re.M))])
    assert set(policy.networks) == {"lab", "web", "dmz", "lan"}
    assert set(policy.bridges) == {"br0"}


def test_examples_are_right_policies() -> None:
    readme = (TREE / "README.md").read_text()
    shown = re.findall(r"^```toml\n(.*?)^```", readme, re.M | re.S)
    example = section(manual("vnetd.toml.5"), "EXAMPLE")
    shown.append(example.removeprefix(".EX\n").partition("\n.EE")[0])
    assert len(shown) >= 2
    for text in shown:
        assert parse([PolicyText("example", text)]).networks
