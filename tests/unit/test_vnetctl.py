"""vnetctl by itself, as far as it needs no daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vnetd.cli import edit, render
from vnetd.cli.main import parser
from vnetd.errors import BackendError


@pytest.mark.parametrize(
    "line",
    [
        ("pause", "-5"),
        ("pause", "0"),
        ("pause", "1" + 30 * "0"),
        ("history", "-n", "0"),
        ("history", "-n", "-1"),
        ("unmanaged", "two names"),
        ("unmanaged", "br0\nunmanaged-devices=*"),
    ],
)
def test_wrong_arguments_are_wrong_usage(
    line: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(line)
    assert ended.value.code == 2
    assert "error: argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"a = 1\n# \xff\n", "draft:2: is not UTF-8 text"),
        (b"\n\n\0", "draft:3: holds a NUL"),
        (b"#" * (1 << 20) + b"#", "draft is larger than 1 MiB"),
    ],
)
def test_what_the_bus_cannot_carry_is_not_sent(data: bytes, wrong: str) -> None:
    with pytest.raises(BackendError, match=wrong):
        edit.checked(data, "draft")


def test_others_changes_are_shown_as_a_diff() -> None:
    shown = edit.changes("a = 1\nb = 2\n", "a = 1\nb = 3\n").splitlines()
    assert shown[-3:] == [" a = 1", "-b = 2", "+b = 3"]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    policy = tmp_path / "vnetd.toml"
    policy.write_text("")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vnetd.cli.main", "check", str(policy)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = "vnetctl: what it says cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_no_plan_is_no_praise_while_something_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_plan([], "converged")
    assert "as it must be" in capsys.readouterr().out
    render.print_plan([], "degraded")
    assert "vnetctl status" in capsys.readouterr().out


def test_a_flush_does_not_fill_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    manager = dict.fromkeys(("State", "Mode", "Libvirt", "Firewall", "Guard"), "")
    drift = [f"{number} rules missing" for number in range(12)]
    network = dict.fromkeys(("State", "Kept", "Mode", "Bridge", "Guard"), "")
    lists = {"Addresses": [], "Reasons": [], "Drift": drift, "Active": True, "Autostart": True}
    render.print_status({**manager, "Reasons": []}, [{"Name": "lab", **network, **lists}], [])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lab: ")]
    assert lines[-1] == "lab: and 8 more"
    assert len(lines) == 5
