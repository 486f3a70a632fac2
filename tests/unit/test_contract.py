"""dbus/ and the code that serves it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from vnetd.api import contract, names, objects
from vnetd.api.objects import JobStatus
from vnetd.api.service import Service

TREE = Path(__file__).parents[2]
OWN = sorted((TREE / "dbus").glob("org.vnetd1.*.xml"))


class Nothing:
    """Operations that nobody asks for."""

    reconcile = None


def test_each_interface_has_a_file_of_its_name() -> None:
    found = {name for name in contract.interfaces() if name.startswith("org.vnetd1.")}
    assert found == {path.stem for path in OWN}


def test_every_method_of_the_contract_is_served_and_no_other() -> None:
    async def handled() -> set[tuple[str, str]]:
        service = Service(Nothing(), lambda _topic, _texts: None)  # type: ignore[arg-type]
        return set(service._handlers)

    wanted = {
        (name, method)
        for name, interface in contract.interfaces().items()
        for method in interface.takes
    }
    assert asyncio.run(handled()) == wanted


def test_every_method_that_needs_one_has_an_action_that_polkit_knows() -> None:
    policy = ET.parse(TREE / "polkit/org.vnetd1.policy")
    known = {action.get("id") for action in policy.iterfind("action")}
    used = set(contract.interfaces()[names.MANAGER].actions.values()) - {""}
    assert used == known
    owners = [item.text for item in policy.iterfind("action/annotate")]
    assert owners == ["unix-user:vnetd"] * len(known)


def test_what_changes_something_needs_a_password_of_everybody() -> None:
    policy = ET.parse(TREE / "polkit/org.vnetd1.policy")
    for action in policy.iterfind("action"):
        words = [item.text for item in action.iterfind("defaults/*")]
        reads = action.get("id") == "org.vnetd1.read-details"
        assert words == ["auth_admin_keep"] * 2 + ["yes" if reads else "auth_admin_keep"]


def test_a_job_has_the_properties_of_the_contract() -> None:
    job = JobStatus(1, "reconcile", running=True, done=1, total=2, step="start network lab")
    found = {name: value.signature for name, value in objects.properties(job).items()}
    assert found == contract.interfaces()[names.JOB].properties


def test_introspection_has_no_comments_and_all_annotations() -> None:
    xml = contract.introspection((names.MANAGER,), ("network",))
    assert "<!--" not in xml
    root = ET.fromstring(xml)
    assert [node.get("name") for node in root.iterfind("node")] == ["network"]
    assert root.find("interface/property/annotation[@value='const']") is not None


def test_everything_in_the_contract_has_a_word_of_explanation() -> None:
    plain = {"Version", "Name", "UUID", "Bridge", "Active", "Autostart", "Up", "MAC", "MTU", "STP"}
    plain |= {"Network", "Total"}
    member = re.compile(r"(-->)?\n    <(method|signal|property) name=\"(\w+)\"")
    for path in OWN:
        for comment, _, name in member.findall(path.read_text()):
            assert comment or name in plain, f"{path.name}: {name}"


def test_the_manual_is_made_of_it() -> None:
    made = subprocess.run(
        [sys.executable, TREE / "packaging/api-manual"], capture_output=True, text=True, check=True
    )
    assert made.stdout == (TREE / "packaging/man/org.vnetd1.5").read_text(), (
        "run: packaging/api-manual >packaging/man/org.vnetd1.5"
    )
