"""The package, built once for all hosts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import TREE
from tests.system.host import Host


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("package")
    subprocess.run([TREE / "packaging/build-deb", out], check=True)
    (built,) = out.glob("*.deb")
    return built


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def box(request: pytest.FixtureRequest) -> Iterator[Host]:
    with Host(request.param) as host:
        host.boot()
        yield host
