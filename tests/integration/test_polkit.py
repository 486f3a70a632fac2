"""Who may do what, as a real polkitd decides it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.hypervisor import Hypervisor

MANAGER = ("org.vnetd1", "/org/vnetd1", "org.vnetd1.Manager")
READING = (
    ("GetPolicy",),
    ("Plan",),
    ("History",),
    ("HistoryPage", "tu", "0", "1"),
    ("Why", "ss", "lab", ""),
)
RECONCILE, RELOAD, PAUSE, RESUME = ("Reconcile",), ("Reload",), ("Pause", "t", "60"), ("Resume",)
EDIT = ("SetPolicy", "ss", "", "")
POLICY_FILE = "/etc/vnetd/vnetd.toml"
CHANGING = (RECONCILE, RELOAD, PAUSE, RESUME)
LAB = """
[networks.lab]
mode = "nat"
bridge = "vblab"
addresses = ["10.77.0.1/24"]
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    with Hypervisor() as hypervisor:
        hypervisor.start_polkit()
        hypervisor.start_vnetd(LAB)
        yield hypervisor


def call(box: Hypervisor, user: str, *method: str, interactive: bool = False) -> str:
    """ "" or what went wrong."""
    asks = f"--allow-interactive-authorization={'yes' if interactive else 'no'}"
    done = box.attempt_as(user, "busctl", "--system", asks, "call", *MANAGER, *method)
    assert bool(done.stderr) == bool(done.returncode)
    assert "Traceback" not in done.stderr
    return done.stderr


def grant(box: Hypervisor, rule: str) -> None:
    """polkit reads its rules again by itself."""
    before = box.log("polkit").count("Finished loading")
    text = f"polkit.addRule(function (action, subject) {{ {rule} }});\n"
    box.write("/etc/polkit-1/rules.d/40-lab.rules", text)
    box.wait_until(lambda: box.log("polkit").count("Finished loading") > before)


def test_properties_are_everybodys(box: Hypervisor) -> None:
    tree = ("busctl", "--system", "--list", "tree", "org.vnetd1")
    assert "/org/vnetd1/network/lab" in box.attempt_as("alice", *tree).stdout
    assert box.attempt_as("alice", box.tool("vnetctl"), "status").returncode == 0
    assert box.attempt_as("alice", box.tool("vnetctl"), "status", "lab").returncode == 0


@pytest.mark.parametrize("method", [*READING, *CHANGING, EDIT], ids=lambda method: method[0])
def test_who_has_no_session_may_do_nothing_else(box: Hypervisor, method: tuple[str, ...]) -> None:
    """A password of root's would do: nobody is there to ask for it."""
    assert "needs a password" in call(box, "alice", *method)
    assert "which polkit does not grant" in call(box, "alice", *method, interactive=True)
    assert box.state() == "converged"


@pytest.mark.parametrize("method", READING, ids=lambda method: str(method[0]))
def test_group_libvirt_may_read_and_plan(box: Hypervisor, method: tuple[str, ...]) -> None:
    assert call(box, "lab-user", *method) == ""


@pytest.mark.parametrize("method", [*CHANGING, EDIT], ids=lambda method: str(method[0]))
def test_group_libvirt_may_change_nothing(box: Hypervisor, method: tuple[str, ...]) -> None:
    assert "needs a password" in call(box, "lab-user", *method)


@pytest.mark.parametrize(
    ("action", "granted"),
    [("reconcile", [RECONCILE]), ("manage-policy", [RELOAD]), ("pause", [PAUSE, RESUME])],
)
def test_a_rule_for_one_action_grants_just_that(
    box: Hypervisor, action: str, granted: list[tuple[str, ...]]
) -> None:
    yes = "return polkit.Result.YES;"
    grant(box, f'if (action.id == "org.vnetd1.{action}" && subject.user == "alice") {yes}')
    for method in (*READING, *CHANGING):
        said = call(box, "alice", *method)
        assert said == "" if method in granted else "needs a password" in said, method
    grant(box, "return polkit.Result.NOT_HANDLED;")
    box.wait_for_state("converged")


def policy(box: Hypervisor) -> tuple[str, str]:
    """As lab-user sees it."""
    asked = ("busctl", "--system", "--json=short", "call", *MANAGER, "GetPolicy")
    text, etag = json.loads(box.attempt_as("lab-user", *asked).stdout)["data"]
    return text, etag


@pytest.fixture
def two_admins(box: Hypervisor) -> Iterator[None]:
    """alice and lab-user, who may change the policy; afterwards it is as it was."""
    users = 'subject.user == "alice" || subject.user == "lab-user"'
    yes = "return polkit.Result.YES;"
    grant(box, f'if (action.id == "org.vnetd1.manage-policy" && ({users})) {yes}')
    yield
    box.write(POLICY_FILE, LAB)
    grant(box, "return polkit.Result.NOT_HANDLED;")
    box.run(box.tool("vnetctl"), "reload")
    box.wait_for_state("converged")


@pytest.mark.usefixtures("two_admins")
def test_of_two_admins_who_edit_the_policy_the_second_is_told(box: Hypervisor) -> None:
    text, etag = policy(box)
    assert text == LAB
    first, second = text + "mtu = 1442\n", text + "mtu = 1443\n"
    assert call(box, "alice", "SetPolicy", "ss", first, etag) == ""
    said = call(box, "lab-user", "SetPolicy", "ss", second, etag)
    assert f"{POLICY_FILE} has been changed by somebody else" in said
    assert box.run("cat", POLICY_FILE) == first
    box.wait_until(lambda: box.run("cat", "/sys/class/net/vblab/mtu") == "1442\n")
    uid = box.run("id", "-u", "alice").strip()
    assert f"{POLICY_FILE} changed over the bus by uid {uid}" in box.log("vnetd")
    text, etag = policy(box)
    assert call(box, "lab-user", "SetPolicy", "ss", text.replace("1442", "1443"), etag) == ""
    assert box.run("cat", POLICY_FILE) == second


@pytest.mark.usefixtures("two_admins")
def test_of_many_at_once_one_has_changed_the_policy(box: Hypervisor) -> None:
    _, etag = policy(box)
    texts = [f"{LAB}mtu = {mtu}\n" for mtu in range(1430, 1440)]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda text: call(box, "alice", "SetPolicy", "ss", text, etag), texts))
    (done,) = (text for text, wrong in zip(texts, said, strict=True) if not wrong)
    assert all("somebody else" in wrong for wrong in said if wrong)
    assert box.run("cat", POLICY_FILE) == done


@pytest.mark.usefixtures("two_admins")
def test_a_policy_that_cannot_be_taken_is_not_written(box: Hypervisor) -> None:
    _, etag = policy(box)
    said = call(box, "alice", "SetPolicy", "ss", LAB.replace("nat", "natt"), etag)
    assert f'{POLICY_FILE}:3: networks.lab.mode: "natt" is not known; do you mean "nat"?' in said
    assert "is empty" in call(box, "alice", "SetPolicy", "ss", "", etag)
    box.run("chmod", "755", "/etc/vnetd")
    said = call(box, "alice", "SetPolicy", "ss", LAB + "# more\n", etag)
    box.run("chmod", "775", "/etc/vnetd")
    assert f"{POLICY_FILE} cannot be written: Permission denied" in said
    box.sh(f"cp {POLICY_FILE} /etc/elsewhere.toml; ln -sf /etc/elsewhere.toml {POLICY_FILE}")
    said = call(box, "alice", "SetPolicy", "ss", LAB + "# more\n", etag)
    box.run("rm", POLICY_FILE)
    assert "/etc/elsewhere.toml cannot be written: Read-only file system" in said
    assert box.run("cat", "/etc/elsewhere.toml") == LAB
    box.write(POLICY_FILE, LAB + "# by hand\n")
    assert "somebody else" in call(box, "alice", "SetPolicy", "ss", LAB, etag)
    assert box.run("cat", POLICY_FILE) == LAB + "# by hand\n"
    assert box.run("ls", "-A", "/etc/vnetd") == "vnetd.toml\n"
    assert box.state() == "converged"


def test_vnetctl_ends_with_5(box: Hypervisor) -> None:
    for command in ("reconcile", "reload", "plan", "history", "resume"):
        done = box.attempt_as("alice", box.tool("vnetctl"), command)
        assert done.returncode == 5, command


def test_a_question_ends_when_the_caller_leaves(box: Hypervisor) -> None:
    """pkttyagent asks on a terminal that nobody answers at."""
    box.monitor_bus("polkit-calls", "member='CancelCheckAuthorization'")
    become = "setpriv --reuid=alice --regid=alice --init-groups"
    ask = f"busctl --system call {' '.join(MANAGER)} Resume"
    # The shell becomes busctl, which so is the process that the agent speaks for.
    script = f"pkttyagent --process $$ & sleep 1; exec {ask}"
    box.spawn("asking", "script", "-qec", f"{become} sh -c '{script}'", "/dev/null")
    box.wait_until(lambda: "Password" in box.log("asking"))
    assert "CancelCheckAuthorization" not in box.log("polkit-calls")
    box.sh("kill $(pgrep -u alice busctl)")
    box.wait_until(lambda: "CancelCheckAuthorization" in box.log("polkit-calls"))
    box.kill("polkit-calls")
    assert box.state() == "converged"


def test_without_polkit_root_alone_may(box: Hypervisor) -> None:
    box.kill("polkit")
    # The bus must not start another one.
    box.sh("mount -t tmpfs tmpfs /usr/share/dbus-1/system-services")
    bus = ("org.freedesktop.DBus", "/", "org.freedesktop.DBus")
    box.run("busctl", "--system", "call", *bus, "ReloadConfig")
    for method in (*READING, *CHANGING):
        assert "only root may" in call(box, "lab-user", *method)
        assert call(box, "root", *method) == ""
    box.wait_for_state("converged")
