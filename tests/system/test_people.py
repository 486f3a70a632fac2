"""People on an installed system: who wakes vnetd, and what polkit lets them do, at the machine,
from afar, and with a password.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.long import LONG
from tests.system.host import Host

pytestmark = pytest.mark.timeout(400)

PASSWORD = "correct horse"
MANAGER = ("org.vnetd1", "/org/vnetd1", "org.vnetd1.Manager")
STATE = ("busctl", "--system", "get-property", *MANAGER, "State")
CTRL_C = "\x03"


@pytest.fixture(scope="module", params=["bookworm", "trixie"] if LONG else ["trixie"])
def box(request: pytest.FixtureRequest, package: Path) -> Iterator[Host]:
    """alice is nobody, carol an administrator: she has the password."""
    with Host(request.param) as host:
        host.boot()
        host.install(package)
        for name in ("typist", "desktop"):
            host.write(f"/opt/{name}.py", Path(__file__).with_name(f"{name}.py").read_text())
        host.sh("useradd -m alice; useradd -m bob; useradd -m -G sudo carol")
        host.run("chpasswd", stdin=f"carol:{PASSWORD}\n")
        host.wait_for_state("converged")
        yield host


def session(
    box: Host, *command: str, user: str = "alice", seat: bool = True
) -> subprocess.CompletedProcess[str]:
    """In a session that logind knows of; seat: the newest one there is the active one."""
    return box.attempt(*in_session(*command, user=user, seat=seat))


def in_session(*command: str, user: str = "alice", seat: bool = True) -> list[str]:
    return [
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect"),
        *("-p", f"User={user}", "-p", "PAMName=login", *(("-E", "XDG_SEAT=seat0") if seat else ())),
        *command,
    ]


def typing(answer: str, *command: str) -> list[str]:
    return ["/usr/bin/python3", "/opt/typist.py", answer, *command]


def is_active(box: Host) -> bool:
    return box.succeeds("systemctl", "is-active", "--quiet", "vnetd")


def test_a_call_starts_a_stopped_service(box: Host) -> None:
    box.run("systemctl", "stop", "vnetd")
    looked = box.vnetctl("status")
    assert (looked.returncode, is_active(box)) == (4, False), "a mere look starts nothing"
    asked = box.attempt("setpriv", "--reuid=alice", "--clear-groups", *STATE)
    assert asked.returncode == 0, asked.stderr
    assert is_active(box)
    box.wait_for_state("converged")


def test_nobody_starts_a_disabled_service(box: Host) -> None:
    box.run("systemctl", "disable", "--now", "vnetd")
    asked = box.attempt(*STATE)
    assert (asked.returncode, is_active(box)) == (1, False)
    box.run("systemctl", "enable", "--now", "vnetd")
    box.wait_for_state("converged")


def test_who_sits_at_the_machine_may_read_and_change_nothing(box: Host) -> None:
    assert session(box, "vnetctl", "history").returncode == 0
    assert session(box, "vnetctl", "plan").returncode == 0
    refused = session(box, "vnetctl", "reconcile")
    assert (refused.returncode, "needs a password" in refused.stderr) == (5, True)


def test_who_is_logged_in_from_afar_may_not_even_read(box: Host) -> None:
    refused = session(box, "vnetctl", "history", seat=False)
    assert (refused.returncode, "needs a password" in refused.stderr) == (5, True)


def test_whose_session_is_not_in_front_may_not_even_read(box: Host) -> None:
    """bob has come to the seat since."""
    waits = "echo waits; while ! test -e /run/box/bob; do sleep 0.1; done; exec vnetctl history"
    box.spawn("alice", *in_session("sh", "-c", waits))
    box.wait_until(lambda: "waits" in box.log("alice"), what="alice's session")
    assert session(box, "touch", "/tmp/bob", user="bob").returncode == 0
    box.spawn("bob", *in_session("sh", "-c", "echo here; exec sleep 600", user="bob"))
    box.wait_until(lambda: "here" in box.log("bob"), what="bob's session")
    box.run("touch", "/run/box/bob")
    box.wait_until(lambda: "needs a password" in box.log("alice"), what="a refusal")
    box.sh("loginctl terminate-user bob")


@pytest.mark.parametrize(("seat", "command"), [(True, "reconcile"), (False, "history")])
def test_on_a_terminal_the_right_password_will_do(box: Host, seat: bool, command: str) -> None:
    done = session(box, *typing(f"{PASSWORD}\n", "vnetctl", command), seat=seat)
    assert "carol" in done.stdout, "who it is that must give it"
    assert (done.returncode, PASSWORD in done.stdout) == (0, False), done.stdout


@pytest.mark.parametrize("answer", ["wrong\n", CTRL_C])
def test_on_a_terminal_nothing_else_does(box: Host, answer: str) -> None:
    done = session(box, *typing(answer, "vnetctl", "pause", "60"))
    assert done.returncode == (1 if answer == CTRL_C else 5), done.stdout
    assert "Traceback" not in done.stdout
    assert box.state() == "converged"


def test_a_desktop_asks_once_for_each_action(box: Host) -> None:
    """auth_admin_keep: what a process was allowed it may for a while."""
    asks = ("/usr/bin/python3", "/opt/desktop.py")
    methods = ("Reconcile", "Reconcile", "Resume", "Resume", "Reconcile")
    done = session(box, *asks, PASSWORD, *methods)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["", 1], ["", 1], ["", 2], ["", 2], ["", 2]]
    assert session(box, "vnetctl", "reconcile").returncode == 5, "others may not"
    wrong = json.loads(session(box, *asks, "wrong", "Reconcile").stdout)
    assert wrong == [["org.vnetd1.Error.NotAuthorized", 1]]


def test_questions_that_nobody_answers_keep_nobody_waiting(box: Host) -> None:
    asks = ("/usr/bin/python3", "/opt/desktop.py", "--silent", "100", "Resume")
    box.spawn("silent", *in_session(*asks))
    refused = json.dumps({"org.vnetd1.Error.LimitsExceeded": 96})
    box.wait_until(lambda: refused in box.log("silent"), what="four questions and no more")
    assert session(box, "vnetctl", "history", user="bob").returncode == 0
    assert session(box, "vnetctl", "plan").returncode == 0, "she herself is served, too"
    assert box.vnetctl("reconcile").returncode == 0
    box.sh("pkill -u alice -f silent")
    done = session(box, *typing(f"{PASSWORD}\n", "vnetctl", "resume"))
    assert done.returncode == 0, f"she can be asked again: {done.stdout}"
