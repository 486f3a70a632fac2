"""Entries that programs look for, and the catalog that explains them."""

from __future__ import annotations

import logging
import re
import subprocess
from pathlib import Path

import pytest

from vnetd import entries
from vnetd.core.model import Cause
from vnetd.core.record import Outcome, Record
from vnetd.entries import Message
from vnetd.errors import Problem

CATALOG = Path(__file__).parents[2] / "systemd/vnetd.catalog"
CAUSE = Cause("iptables", 42, ("bash[41]",))
RECORD = Record(
    time="2026-11-24T12:00:00.000Z",
    object="network/lab",
    drift=("is not active", "autostart is off"),
    cause=CAUSE,
    actions=("start network lab",),
    ms=12,
    outcome=Outcome.REPAIRED,
)


def say_everything() -> None:
    entries.drift_detected("network/lab", RECORD.drift, CAUSE)
    for outcome in Outcome:
        entries.recorded(Record("", "firewall", ("left over",), None, ("delete it",), 3, outcome))
    entries.recorded(RECORD)
    entries.state("converged", "converged, 1 networks")
    entries.policy_loaded(2, 1)
    entries.policy_rejected([Problem("vnetd.toml", 3, "networks.lab.mode", "no", "yes")])
    entries.policy_edited("vnetd.toml", 1000)
    entries.paused(60)
    entries.resumed()
    entries.history_lost("history: damaged")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    with caplog.at_level(logging.INFO):
        say_everything()
    return [record.__dict__["vnetd"] for record in caplog.records]


def explained() -> dict[str, str]:
    """MESSAGE_ID → the whole explanation."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_message_is_said_and_explained(said: list[dict[str, str]]) -> None:
    assert {entry["MESSAGE_ID"] for entry in said} == set(Message)
    assert explained().keys() == set(Message)


def test_explanations_name_only_fields_that_are_always_there(said: list[dict[str, str]]) -> None:
    for entry in said:
        named = re.findall(r"@(\w+)@", explained()[entry["MESSAGE_ID"]])
        assert set(named) <= entry.keys()


def test_a_record_has_all_fields(said: list[dict[str, str]]) -> None:
    (entry,) = (item for item in said if item.get("VNETD_MS") == "12")
    assert entry == {
        "MESSAGE_ID": Message.REPAIRED,
        "VNETD_OBJECT": "network/lab",
        "VNETD_NETWORK": "lab",
        "VNETD_DRIFT": "is not active; autostart is off",
        "VNETD_CULPRIT": "iptables[42] < bash[41]",
        "VNETD_CULPRIT_PROCESS": "iptables",
        "VNETD_CULPRIT_PID": "42",
        "VNETD_ACTIONS": "start network lab",
        "VNETD_MS": "12",
        "VNETD_OUTCOME": "repaired",
    }


def test_what_is_of_no_network_names_none(said: list[dict[str, str]]) -> None:
    of_firewall = [entry for entry in said if entry.get("VNETD_OBJECT") == "firewall"]
    assert len(of_firewall) == 3
    assert not [entry for entry in of_firewall if "VNETD_NETWORK" in entry]


def test_systemd_reads_the_catalog(tmp_path: Path) -> None:
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    (place / "vnetd.catalog").write_text(CATALOG.read_text())
    root = f"--root={tmp_path}"
    subprocess.run(["journalctl", root, "--update-catalog"], check=True, capture_output=True)
    done = subprocess.run(["journalctl", root, "--list-catalog"], capture_output=True, text=True)
    assert set(done.stdout.split()) & set(Message) == set(Message), done.stderr
