"""A new policy takes effect at once; a bad one changes nothing and says why."""

from __future__ import annotations

import json
import re
import signal

import pytest

from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import TREE, Hypervisor

BAD = sorted((TREE / "tests/cases/policy").iterdir())
CONFIG = "/etc/vnetd/vnetd.toml"


def forwarded(box: Hypervisor) -> str:
    return box.run("virsh", "net-dumpxml", "--inactive", "lab")


def longer_range(end: str) -> str:
    return FIVE_NETWORKS.replace("10.77.0.99", end)


def test_a_written_file_is_read_at_once(box: Hypervisor) -> None:
    box.write(CONFIG, longer_range("10.77.0.101"))
    box.wait_until(lambda: "10.77.0.101" in forwarded(box))


def test_a_renamed_file_is_read_at_once(box: Hypervisor) -> None:
    box.write("/etc/vnetd/new", longer_range("10.77.0.102"))
    box.run("mv", "/etc/vnetd/new", CONFIG)
    box.wait_until(lambda: "10.77.0.102" in forwarded(box))


def test_a_drop_in_in_a_new_directory_is_read_at_once(box: Hypervisor) -> None:
    box.write(f"{CONFIG}.d/10-mtu.toml", "[networks.lab]\nmtu = 1442\n")
    box.wait_until(lambda: box.run("cat", "/sys/class/net/vblab/mtu") == "1442\n")
    box.run("rm", f"{CONFIG}.d/10-mtu.toml")
    box.wait_for_state("converged")


def test_sighup_and_reload_read_it(box: Hypervisor) -> None:
    box.write(CONFIG, longer_range("10.77.0.103"))
    box.signal("vnetd", signal.SIGHUP)
    box.wait_until(lambda: "10.77.0.103" in forwarded(box))
    assert box.vnetctl("reload").returncode == 0
    box.wait_for_state("converged")
    assert box.vnetctl("reconcile").returncode == 0


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_bad_policy_changes_nothing(box: Hypervisor, case: object) -> None:
    text = (TREE / "tests/cases/policy" / str(case) / "vnetd.toml").read_text()
    before = box.rules(), box.run("virsh", "net-list", "--all"), forwarded(box)
    box.write(CONFIG, text)
    done = box.vnetctl("reload")
    assert done.returncode == 1
    assert CONFIG in done.stderr
    box.wait_for_state("degraded")
    assert CONFIG in box.vnetctl_json("status")["Reasons"][0]
    assert (box.rules(), box.run("virsh", "net-list", "--all"), forwarded(box)) == before


def test_beside_a_bad_policy_the_old_one_is_enforced(box: Hypervisor) -> None:
    box.write(CONFIG, "networks = 5")
    box.wait_for_state("degraded")
    box.run("virsh", "net-autostart", "--disable", "lab")
    box.wait_until(lambda: "lab" in box.run("virsh", "net-list", "--autostart", "--name"))
    good = box.rules()
    box.sh("nft flush ruleset")
    box.wait_until(lambda: box.rules() == good)


def test_a_mended_policy_ends_the_trouble(box: Hypervisor) -> None:
    box.write(CONFIG, FIVE_NETWORKS)
    box.wait_for_state("converged")


def test_check_needs_no_daemon(box: Hypervisor) -> None:
    done = box.vnetctl("check")
    assert (done.returncode, done.stdout) == (0, "fine: 5 networks in 1 file\n")
    box.write("/run/box/bad.toml", 'networks.lab.mode = "nut"\n')
    done = box.vnetctl("--json", "check", "/run/box/bad.toml")
    assert done.returncode == 1
    assert json.loads(done.stdout)[0] == {
        "file": "/run/box/bad.toml",
        "line": 1,
        "key": "networks.lab.mode",
        "wrong": '"nut" is not known',
        "right": 'do you mean "nat"?',
    }


def edit(box: Hypervisor, editor: str, *words: str, stdin: str = "") -> tuple[int, str]:
    """Its exit status, and what it said."""
    where = ("env", "TMPDIR=/run/box", f"EDITOR={editor}")  # /tmp is not the box's own
    command = (*where, box.tool("vnetctl"), "edit", *words)
    done = box.attempt(*command, stdin=stdin)
    return done.returncode, done.stdout + done.stderr


def test_what_an_editor_makes_of_the_policy_is_in_force(box: Hypervisor) -> None:
    box.write(CONFIG, FIVE_NETWORKS)
    assert edit(box, "sed -i s/10.77.0.99/10.77.0.104/") == (0, "")
    assert box.run("cat", CONFIG) == longer_range("10.77.0.104")
    box.wait_until(lambda: "10.77.0.104" in forwarded(box))
    assert edit(box, "true") == (0, "vnetctl: nothing is changed\n")
    assert edit(box, "nonsense", stdin="")[0] == 1
    assert box.vnetctl("check").stdout == "fine: 5 networks in 1 file\n"
    assert box.run("stat", "-c", "%a %U", CONFIG) == "644 vnetd\n"
    assert not box.run("find", "/run/box", "-name", "vnetd-*.toml")


@pytest.mark.parametrize(
    ("editor", "wrong"),
    [
        ("sed -i s/isolated/isolate/", f'{CONFIG}:17: networks.quiet.mode: "isolate" is not known'),
        (f'sh -c \'echo >>{CONFIG}; echo "# mine" >>"$1"\' sh', "changed by somebody else"),
        ('sh -c \'echo "# mine" >>"$1"; exit 3\' sh', "ended with status 3"),
        ("sed -i '1s/^/\\x00/'", ":1: holds a NUL"),
    ],
)
def test_what_cannot_be_taken_of_an_editor_stays_in_a_file(
    box: Hypervisor, editor: str, wrong: str
) -> None:
    code, said = edit(box, editor)
    assert (code, wrong in said) == (1, True), said
    (kept,) = re.findall(r"what you have typed is in (/run/box/vnetd-\S+\.toml)$", said, re.M)
    typed = re.compile(rb"isolate\b|# mine|\x00")
    assert typed.search(box.path(kept).read_bytes())
    assert not typed.search(box.path(CONFIG).read_bytes())
    box.run("rm", kept)


def test_on_a_terminal_one_edits_again(box: Hypervisor) -> None:
    """First with a mistake, then over somebody else's change, then right."""
    box.write(CONFIG, FIVE_NETWORKS)
    box.write(
        "/run/box/editor",
        f"""#!/bin/sh -e
        case $(cat /run/box/turns 2>/dev/null) in
        "") echo 1 >/run/box/turns; sed -i s/isolated/isolate/ "$1" ;;
        1) echo 2 >/run/box/turns; sed -i s/isolate/isolated/ "$1"
           echo "# mine" >>"$1"; echo "# theirs" >>{CONFIG} ;;
        2) echo "# theirs" >>"$1" ;;
        esac
        """,
    )
    box.run("chmod", "+x", "/run/box/editor")
    command = f"EDITOR=/run/box/editor {box.tool('vnetctl')} --json edit"
    done = box.attempt("script", "-qec", command, "/dev/null", stdin="y\ny\n")
    assert done.returncode == 0, done.stdout
    assert 'do you mean "isolated"' in done.stdout
    assert "+# theirs" in done.stdout
    assert "typed is in" not in done.stdout
    assert box.run("cat", CONFIG) == FIVE_NETWORKS + "# mine\n# theirs\n"


def test_a_script_gives_the_text(box: Hypervisor) -> None:
    long = longer_range("10.77.0.105") + "# padding\n" * 80_000
    assert edit(box, "false", "--file", "-", stdin=long) == (0, "")
    assert box.run("cat", CONFIG) == long
    box.write("/run/box/new.toml", FIVE_NETWORKS)
    code, said = edit(box, "false", "--file", "/run/box/new.toml", "--json")
    assert (code, list(json.loads(said))) == (0, ["etag"])
    assert box.run("cat", CONFIG) == FIVE_NETWORKS
    code, said = edit(box, "false", "--file", "/run/box/none")
    assert (code, said) == (1, "vnetctl: /run/box/none cannot be read: No such file or directory\n")
    code, said = edit(box, "false", "--file", "-", stdin="# padding\n" * 200_000)
    assert (code, "larger than 1 MiB" in said) == (1, True)
    box.wait_for_state("converged")


def test_observe_mode_reports_and_changes_nothing(box: Hypervisor) -> None:
    box.write(CONFIG, '[vnetd]\nmode = "observe"\n' + FIVE_NETWORKS)
    box.wait_until(lambda: box.vnetctl_json("status")["Mode"] == "observe")
    box.sh("iptables -t nat -F")
    box.wait_for_state("drifted")
    broken = box.rules()
    assert box.vnetctl("reconcile").returncode == 1
    done = box.vnetctl("plan")
    assert done.returncode == 3
    assert "restore" in done.stdout
    assert box.rules() == broken
    box.write(CONFIG, FIVE_NETWORKS)
    box.wait_for_state("converged")
    assert box.rules() != broken


def test_an_imported_policy_changes_nothing(box: Hypervisor) -> None:
    imported = box.vnetctl("import").stdout
    box.write("/run/box/imported.toml", imported)
    assert box.vnetctl("check", "/run/box/imported.toml").returncode == 0
    before = box.run("cat", "/etc/vnetd/vnetd.toml")
    box.write("/etc/vnetd/vnetd.toml", imported)
    assert box.vnetctl("reload").returncode == 0
    assert box.vnetctl_json("plan") == []
    box.write("/etc/vnetd/vnetd.toml", before)
    assert box.vnetctl("reload").returncode == 0
    box.wait_for_state("converged")
