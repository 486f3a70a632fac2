"""One emulated machine for all of them. Only with ./dev test --vm: it takes minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.host import Host
from tests.system.vm import Vm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(1200))
            if "VNETD_VM" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="only with ./dev test --vm"))


@pytest.fixture(scope="session")
def vm(package: Path) -> Iterator[Vm]:
    with Host("trixie") as host:
        host.boot()
        host.install(package)
        host.run("virsh", "-q", "net-autostart", "default")
        host.shut_down()
        with Vm(host) as machine:
            yield machine


@pytest.fixture
def box(vm: Vm) -> Vm:
    """Under this name a failed test shows its logs."""
    return vm
