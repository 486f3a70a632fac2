"""The libvirt of this day installs what tests/cases/rules has recorded, which core/rules says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cases import record_rules
from tests.definitions import DEFINITIONS
from tests.lab.hypervisor import Hypervisor


@pytest.fixture(params=record_rules.SYSTEMS, scope="module")
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bare_box(system: str) -> Iterator[Hypervisor]:
    with record_rules.box_of(system) as box:
        yield box


def recorded(box: Hypervisor, system: str, name: str) -> str:
    path = record_rules.folder(box, system) / name
    assert path.exists(), "nothing is recorded: run python -m tests.cases.record_rules"
    return path.read_text()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_definition(bare_box: Hypervisor, system: str, name: str) -> None:
    record_rules.start(bare_box, name, 1)
    seen = record_rules.rules(bare_box, system)
    bare_box.run("virsh", "net-destroy", name)
    assert seen == recorded(bare_box, system, name)


def test_all_of_them_together_in_any_order(bare_box: Hypervisor, system: str) -> None:
    names = record_rules.in_any_order()
    for number, name in enumerate(names):
        record_rules.start(bare_box, name, number)
    seen = record_rules.rules(bare_box, system)
    for name in names:
        bare_box.run("virsh", "net-destroy", name)
    assert seen == recorded(bare_box, system, record_rules.ALL)


@pytest.mark.parametrize("mode", ["nat", "route"])
def test_where_rules_name_a_device_libvirt_takes_no_second(bare_box: Hypervisor, mode: str) -> None:
    network = f"""<network><name>two-devices</name>
        <forward mode="{mode}"><interface dev="uplink0"/><interface dev="lo"/></forward>
        <ip address="10.60.1.1" prefix="24"/></network>"""
    refused = bare_box.attempt("virsh", "net-create", "/dev/stdin", stdin=network)
    assert "only one is supported" in refused.stderr
