"""The RPM package, whose scripts rpm runs in a host that is off: that is Debian's as well, for want
of Fedora, so what it needs is there before. In the long form only, for which ./dev installs rpm.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab.machine import TREE
from tests.long import LONG
from tests.system import outside
from tests.system.host import Host
from tests.system.test_package import files

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not LONG, reason="rpm is there for the long form"),
]
LIBRARIES = ("libvirt", "dbus-next", "pyroute2", "systemd", "tomli")


def rpm(box: Host, *arguments: str) -> str:
    """On the disk of the host, which is off."""
    command = (*box.around("-m"), "rpm", "--root", outside.ROOT, *arguments)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("box", ["trixie"], indirect=True)
def test_it_installs_works_is_upgraded_and_leaves_nothing(box: Host, tmp_path: Path) -> None:
    subprocess.run([TREE / "packaging/build-rpm", tmp_path], check=True)
    (package,) = (str(path) for path in tmp_path.glob("*.rpm"))
    box.apt("install", *(f"python3-{library}" for library in LIBRARIES))
    bare = files(box)
    box.shut_down()
    rpm(box, "--install", "--nodeps", package)
    assert not [line for line in rpm(box, "--verify", "--nodeps", "vnetd").splitlines() if line]
    box.boot()
    assert "libvirt" in box.run("id", "-nG", "vnetd").split()
    box.run("systemctl", "enable", "--now", "vnetd")
    box.run("virsh", "-q", "net-autostart", "default")
    box.run("virsh", "-q", "net-start", "default")
    box.wait_for_state("converged")
    right = box.rules()
    box.run("nft", "flush", "ruleset")
    box.wait_until(lambda: box.rules() == right, what="libvirt's rules")
    box.wait_until(lambda: bool(box.history()), what="a record")

    box.shut_down()
    box.disk("/etc/vnetd/vnetd.toml").write_text("# mine\n")
    rpm(box, "--upgrade", "--force", "--nodeps", package)
    assert box.disk("/etc/vnetd/vnetd.toml").read_text() == "# mine\n"
    box.boot()
    box.wait_for_state("converged")
    assert box.history()

    box.shut_down()
    rpm(box, "--erase", "vnetd")
    box.boot()
    assert not box.run("systemctl", "--failed", "--quiet", "--plain", "--no-legend")
    left = {path for path in files(box) - bare if "vnet" in path.replace("vnet0", "")}
    kept = {"/etc/vnetd", "/etc/vnetd/vnetd.toml.rpmsave", "/var/lib/vnetd"}
    assert {path for path in left if not path.startswith("/var/lib/vnetd/")} == kept
