"""The hosts that faults are played on, and what of them must be as it was afterwards.

A kind of host is a function that sets one up with vnetd on it; most faults are content with plain.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import TRIXIE, Hypervisor
from tests.lab.machine import Machine


class System(StrEnum):
    BOOKWORM = "Debian 12"
    TRIXIE = "Debian 13"

    @property
    def root(self) -> Path | None:
        """Of a box of it."""
        return TRIXIE if self is System.TRIXIE else None


Kind = Callable[[System], AbstractContextManager[Machine]]


POLICY = f"""
[vnetd]
unlisted = "ignore"
{FIVE_NETWORKS}
[bridges.brhost]
ports = ["port0"]
"""


def furnish(box: Machine) -> None:
    """The bridge of the network lan, a wire for the host's own, and a bridge with a guest's tap
    that are nothing of vnetd's.
    """
    box.sh("""
        ip link add br0 type bridge; ip link set br0 up
        ip link add port0 address 52:54:00:00:a0:01 type veth \
            peer name wire0 address 52:54:00:00:a0:02
        ip link set wire0 up
        ip link add theirbr0 type bridge; ip link set theirbr0 up
        ip addr add 192.0.2.129/25 dev theirbr0
        ip tuntap add dev theirtap0 mode tap; ip link set theirtap0 master theirbr0 up
    """)


@contextmanager
def plain(system: System) -> Iterator[Machine]:
    """Five networks and a host bridge of a policy, on libvirt's iptables backend."""
    with Hypervisor(root=system.root) as box:
        furnish(box)
        box.start_vnetd(POLICY)
        yield box


@dataclass(frozen=True, slots=True)
class Usage:
    """mib: of memory. cpu_ms: so far, that of the tools which it has run included."""

    files: int
    mib: int
    cpu_ms: int


# proc(5): utime, stime, cutime and cstime are in 1/100 s; vnetd's name holds no space
_USAGE = """
ls /proc/$0/fd | wc -l
sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$0/status
cut -d ' ' -f 14-17 /proc/$0/stat
"""


class Host:
    """A machine with a guest on its network lab, and what of both must be as it was."""

    def __init__(self, system: System, box: Machine) -> None:
        self.system = system
        self.box = box
        self.libvirt = box.run("virsh", "-v").strip()
        self.guest = box.domain_guest("lab", "10.77.0.51/24", gateway="10.77.0.1")
        self.tap = box.run("virsh", "-q", "domiflist", self.guest).split()[0]
        box.wait_for_state("converged")

    @property
    def hypervisor(self) -> Hypervisor:
        """For faults that need what only a box can do with its bus, libvirtd and vnetd."""
        assert isinstance(self.box, Hypervisor), "a fault for boxes"
        return self.box

    def facts(self) -> dict[str, object]:
        box = self.box
        links = json.loads(box.run("ip", "-d", "-j", "addr", "show"))
        return {
            "rules": box.sorted_rules(),
            "tables": sorted(box.tables().splitlines()),
            "links": {link["ifname"]: _fact(link) for link in links},
            # The kernel takes its time to say of a new bridge without ports that it has no carrier.
            "routes": sorted(
                line.replace("linkdown ", "")
                for line in box.run("sh", "-c", "ip route; ip -6 route").splitlines()
            ),
            "ports": box.attempt("virsh", "-q", "net-port-list", "lab").stdout.split(),
            "forwarding": box.run("cat", "/proc/sys/net/ipv4/ip_forward"),
            "config": box.attempt("virsh", "net-dumpxml", "lab", "--inactive").stdout,
            "info": box.attempt("virsh", "net-info", "lab").stdout,
        }

    def processes(self) -> dict[str, str]:
        """The pids of those that no repair may restart."""
        qemu = self.box.run("cat", f"/run/libvirt/qemu/{self.guest}.pid").strip()
        return {"vnetd": self.pid("vnetd"), "libvirtd": self.pid("libvirtd"), "guest": qemu}

    def pid(self, name: str) -> str:
        script = 'cat /run/box/$0.pid 2>/dev/null || systemctl show --value -p MainPID "$0"'
        return self.box.run("sh", "-c", script, name).strip()

    def usage(self) -> Usage:
        """Of vnetd."""
        words = self.box.run("sh", "-c", _USAGE, self.pid("vnetd")).split()
        files, kib, *ticks = (int(word) for word in words)
        return Usage(files, kib // 1024, sum(ticks) * 10)

    def run(self, script: str) -> None:
        """With the guest's tap in $TAP, vnetctl as a command, and "fails" before one that must."""
        vnetctl = f'vnetctl() {{ {self.box.tool("vnetctl")} "$@" >/dev/null; }}'
        vnetctl += '; fails() { if "$@"; then return 1; fi; }'
        self.box.sh(f"TAP={self.tap}; {vnetctl}\n{script}")

    def is_plugged(self) -> bool:
        return "master vblab" in self.box.run("ip", "link", "show", self.tap)

    def wait_until_said(self, part: str) -> None:
        self.box.wait_until(lambda: part in self.said(), seconds=30, what=f"{part} is told")

    def said(self) -> str:
        """All reasons and drift in vnetd's status."""
        status = self.box.vnetctl_json("status")
        words = [*status["Reasons"]]
        for kept in (*status["Networks"], *status["Bridges"]):
            words += [*kept["Reasons"], *kept["Drift"]]
        return "; ".join(words)


def _fact(link: dict[str, Any]) -> tuple[object, ...]:
    info = link.get("linkinfo", {})
    return (
        link.get("master"),
        link["mtu"],
        link["address"],
        "UP" in link["flags"],
        info.get("info_slave_data", {}).get("isolated"),
        info.get("info_data", {}).get("stp_state"),
        sorted(a["local"] for a in link["addr_info"] if a["scope"] == "global"),
    )


class Hosts:
    """One for all faults in turn, until one is not healed or another kind is asked for."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._stack = ExitStack()
        self._kind: Kind | None = None
        self._host: Host | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._kind = self._host = None
        self._stack.__exit__(*error)

    @contextmanager
    def host(self, kind: Kind) -> Iterator[Host]:
        if self._host is None or self._kind is not kind:
            self.__exit__(None, None, None)
            self._host = Host(self.system, self._stack.enter_context(kind(self.system)))
            self._kind = kind
        try:
            yield self._host
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
