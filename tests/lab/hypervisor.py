"""The box from outside: bring it up, run things in it, take it down.

    with Hypervisor() as box:
        box.start_vnetd(POLICY)
        guest = box.guest("lab", "10.77.0.50/24", gateway="10.77.0.1")
        box.run("iptables", "-t", "nat", "-F")

Hypervisor(root=TRIXIE) is one of Debian 13 and its libvirt, whatever this machine is; backend and
variant choose libvirt's firewall_backend and which iptables it finds; Hypervisor.of_world(NAME)
has all three from WORLDS.

The link uplink0 leads to the host "wan", which answers probes and knows no way to guests.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from tests.lab.canary import Canary
from tests.lab.machine import (
    CACHE,
    LAB,
    POLICY,
    TREE,
    UPLINK,
    UPLINK_IPV6,
    WAN,
    WAN_IPV6,
    LabError,
    Machine,
)

__all__ = [
    "BIN",
    "CACHE",
    "OTHERS_MAY_ENTER",
    "TREE",
    "TRIXIE",
    "UPLINK",
    "UPLINK_IPV6",
    "WAN",
    "WORLDS",
    "WORLDS_IN_SHORT",
    "Hypervisor",
    "LabError",
]

TRIXIE = CACHE / "trixie"
WORLDS: Mapping[str, tuple[Path | None, str, str]] = {
    "libvirt 9.0 iptables-nft": (None, "", "nft"),
    "libvirt 9.0 iptables-legacy": (None, "", "legacy"),
    "libvirt 11.3 iptables-nft": (TRIXIE, "iptables", "nft"),
    "libvirt 11.3 iptables-legacy": (TRIXIE, "iptables", "legacy"),
    "libvirt 11.3 nftables": (TRIXIE, "nftables", "nft"),
}
"""Each libvirt with each firewall that it can write to."""
WORLDS_IN_SHORT = [name for name in WORLDS if not name.startswith("libvirt 11.3 iptables")]
"""Each firewall once."""
BIN = Path(sys.prefix) / "bin"

# The service's user has no way into a tree that only root may enter.
OTHERS_MAY_ENTER = all(
    path.stat().st_mode & 0o001 for path in (*TREE.parents, TREE, TREE / "vnetd", BIN / "python")
)
_FIREWALLD = TREE / "tests/cases/foreign/firewalld"


class Hypervisor(Machine):
    with_canary = False
    """Whether other people's tables and rules are in each box: tests set it."""
    standing: ClassVar[list[Hypervisor]] = []

    def __init__(
        self, *, root: Path | None = None, backend: str = "", variant: str = "nft"
    ) -> None:
        super().__init__()
        self._root = root
        self._backend = backend
        self._variant = variant
        self._cleanup = contextlib.ExitStack()

    @classmethod
    def of_world(cls, name: str) -> Self:
        root, backend, variant = WORLDS[name]
        return cls(root=root, backend=backend, variant=variant)

    def __enter__(self) -> Self:
        with self._cleanup:  # whatever fails below, nothing stays behind
            self._up()
            self._cleanup = self._cleanup.pop_all()
        self.standing.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.standing.remove(self)
        with self._cleanup:
            if self.canary is not None and kind is None:
                self.canary.check()

    def _up(self) -> None:
        cache = CACHE / (f"libvirt-{self._root.name}" if self._root else "libvirt")
        cache.mkdir(parents=True, exist_ok=True)
        namespaces = ("--mount", "--net", "--pid", "--uts", "--ipc", "--propagation=unchanged")
        unshare = ("unshare", *namespaces, "--fork", "--kill-child")
        root = [str(self._root)] if self._root else []
        init = subprocess.Popen(
            [*unshare, sys.executable, str(LAB / "init.py"), str(cache), *root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._cleanup.callback(self._down, init)
        assert init.stdout is not None, "stdout is a pipe"
        word, _, pid = init.stdout.readline().decode().partition(" ")
        if word != "ready":
            raise LabError("the box's init failed; what it said is above")
        self._init_pid = int(pid)
        self.run("mkdir", "-p", "/run/box")
        self._make_tools()
        self._make_uplink()
        self.start_bus()
        if self._backend:
            self.set_backend(self._backend)
        self.set_variant(self._variant)
        self.start_libvirtd()
        if self.with_canary:
            self.canary = Canary(self, self._variant)
            self.canary.settle()

    def _down(self, init: subprocess.Popen[bytes]) -> None:
        """Without its PID 1 the kernel ends all processes of the box, and its namespaces."""
        assert init.stdin is not None, "stdin is a pipe"
        assert init.stdout is not None, "stdout is a pipe"
        init.kill()  # unshare takes its child along
        init.wait()
        init.stdin.close()
        init.stdout.close()
        for process in self._processes.values():
            process.wait(30)

    def namespace(self) -> str:
        """The name of its pid namespace, in which all its processes are."""
        return os.readlink(f"/proc/{self._init_pid}/ns/pid")

    # -- what runs in the box

    def start_bus(self) -> None:
        """With the project's own bus policy, as its packages install it."""
        policy = (TREE / "dbus/org.vnetd1.conf").read_text()
        self.write("/etc/dbus-1/system.d/org.vnetd1.conf", policy)
        self.run("rm", "-f", "/run/dbus/system_bus_socket")
        self.spawn("bus", *self._bus())
        self.wait_until(lambda: self.succeeds("test", "-S", "/run/dbus/system_bus_socket"))

    def _bus(self) -> tuple[str, ...]:
        return "dbus-daemon", "--system", "--nofork", "--nopidfile"

    def start_polkit(self) -> None:
        """With the project's own actions and rules, as its packages install them; lab-user comes
        into the group libvirt.
        """
        self.sh("groupadd -f libvirt; usermod -aG libvirt lab-user")
        shipped = (("actions", "org.vnetd1.policy"), ("rules.d", "org.vnetd1.rules"))
        for folder, name in (*shipped, ("rules.d", "vnetd.rules")):
            text = (TREE / "polkit" / name).read_text()
            self.write(f"/usr/share/polkit-1/{folder}/{name}", text)
        self.spawn("polkit", "/usr/lib/polkit-1/polkitd")
        self.wait_until(lambda: self.owns_name("org.freedesktop.PolicyKit1"))

    def start_firewalld(self) -> None:
        """With the zones that libvirt brings for it."""
        for path in sorted(_FIREWALLD.rglob("*.xml")):
            self.write(f"/etc/firewalld/{path.parent.name}/{path.name}", path.read_text())
        self.spawn("firewalld", "firewalld", "--nofork", "--nopid")
        self.wait_until(lambda: self.succeeds("firewall-cmd", "--state"), what="firewalld")

    def owns_name(self, name: str) -> bool:
        """Whether somebody has this name on the bus."""
        bus = ("org.freedesktop.DBus", "/", "org.freedesktop.DBus")
        call = ("busctl", "--system", "call", *bus, "NameHasOwner", "s", name)
        return self.run(*call) == "b true\n"

    def monitor_bus(self, name: str, *matches: str) -> None:
        """Every message that one of these rules matches goes to log(name), as JSON."""
        already = self.log("bus").count("became a monitor")
        rules = [word for rule in matches for word in ("--match", rule)]
        self.spawn(name, "busctl", "--system", "--json=short", *rules, "monitor")
        self.wait_until(lambda: self.log("bus").count("became a monitor") > already, what=name)

    def set_backend(self, backend: str) -> None:
        """libvirt's own choice of firewall; a libvirtd that runs keeps its old one."""
        self.write("/etc/libvirt/network.conf", f'firewall_backend = "{backend}"\n')

    def set_variant(self, variant: str) -> None:
        """Which iptables "iptables" is: "nft" or "legacy"."""
        self.sh(f"""
            for name in iptables iptables-save iptables-restore \
                ip6tables ip6tables-save ip6tables-restore
            do
                tool=${{name%%-*}}-{variant}${{name#ip*tables}}
                ln -sf "/usr/sbin/$tool" "/etc/alternatives/$name"
            done
        """)

    def start_libvirtd(self) -> None:
        self.spawn("libvirtd", "libvirtd")
        self.wait_until(lambda: self.succeeds("virsh", "-q", "uri"))

    def start_vnetd(
        self,
        policy: str | None = None,
        *arguments: str,
        legacy: bool = False,
        as_root: bool = False,
    ) -> None:
        """The daemon of this tree; returns when it is on the bus and its first pass is over."""
        if policy is not None:
            self.write(POLICY, policy)
        self.spawn_vnetd("--log-level", "debug", *arguments, legacy=legacy, as_root=as_root)
        first = "vnetd's first pass"
        self.wait_until(lambda: self.state() not in ("", "healing"), seconds=60, what=first)

    def spawn_vnetd(self, *arguments: str, legacy: bool = False, as_root: bool = False) -> None:
        """As its unit does, with what systemd and packages prepare for it. legacy: others than
        libvirt use iptables-legacy, for which the unit has its drop-in. as_root: not as its unit
        does, for which a test needs a reason.
        """
        argv = (self.tool("vnetd"), *arguments)
        if as_root:
            self.spawn("vnetd", *argv)
        else:
            self.serve(*argv, legacy=legacy)

    def serve(self, *argv: str, legacy: bool = False) -> subprocess.Popen[bytes]:
        """Run this as vnetd.service runs vnetd."""
        if legacy:
            self._show_legacy_modules()
        self.sh("""
            mkdir -p /run/vnetd
            install -d -m775 -g vnetd /etc/vnetd
            touch /run/xtables.lock
            find /run/vnetd /var/lib/vnetd ! -user vnetd -exec chown vnetd:vnetd {} +
            chown root:vnetd /run/xtables.lock
            chmod 660 /run/xtables.lock
        """)
        if "status" not in self._processes:
            (hand_over,) = _settings("vnetd-libvirt-status@.service", "ExecStart")
            (socket,) = _settings("vnetd-libvirt-status.socket", "ListenStream")
            listen = ("systemd-socket-activate", "--accept", "--inetd", f"--listen={socket}")
            self.spawn("status", *listen, *hand_over.split())
            self.wait_until(lambda: self.succeeds("chgrp", "vnetd", socket))
            self.run("chmod", "660", socket)
        return self.spawn("vnetd", *self.as_service(*argv, legacy=legacy))

    def _show_legacy_modules(self) -> None:
        """As they are seen where its tables are modules, as distributions have them; where they
        are built in, only root sees which tables there are.
        """
        self.sh("""
            [ ! -d /sys/module/iptable_nat ] || exit 0
            cd /run/box
            mkdir -p modules work
            for table in filter mangle nat; do
                mkdir modules/iptable_$table modules/ip6table_$table
            done
            layers=lowerdir=/sys/module,upperdir=modules,workdir=work
            mount -t overlay -o $layers overlay /sys/module
        """)

    def as_service(self, *argv: str, legacy: bool = False) -> tuple[str, ...]:
        """How to run this as the unit runs vnetd; see confine.py."""
        units = ["vnetd.service"]
        if self._variant == "legacy" or legacy:
            units.append("iptables-legacy.conf")
        capabilities = [name for unit in units for name in _settings(unit, "AmbientCapabilities")]
        if not OTHERS_MAY_ENTER:
            capabilities.append("CAP_DAC_READ_SEARCH")
        have = ["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)]
        sets = (
            f"--{name}={','.join(have)}" for name in ("inh-caps", "ambient-caps", "bounding-set")
        )
        user = ("--reuid=vnetd", "--regid=vnetd", "--init-groups", "--no-new-privs")
        confine = ("/usr/bin/python3", "-IS", str(LAB / "confine.py"), *units, "--")
        return *confine, "setpriv", *user, *sets, *argv

    def tool(self, name: str) -> str:
        """A program of this tree."""
        return f"/usr/local/bin/{name}" if self._root else str(BIN / name)

    def as_user(self, user: str, *argv: str) -> tuple[str, ...]:
        """How to run this as somebody who is not root, but can reach this tree wherever it is."""
        become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        reach = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        return (*become, *reach, *argv)

    def attempt_as(self, user: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.attempt(*self.as_user(user, *argv))

    def harass(self, name: str, user: str, kind: str, most: int = 0) -> None:
        """Let this user do its worst on the bus until kill(name); see hostile.py."""
        argv = self.python("-m", "tests.lab.hostile", kind, str(most))
        self.path(f"/run/box/{name}.log").unlink(missing_ok=True)
        self.spawn(name, *self.as_user(user, *argv))
        self.wait_until(lambda: "at work" in self.log(name), what=f"{kind} by {user}")

    def python(self, *argv: str) -> tuple[str, ...]:
        """How to run Python in the box with this tree and the libraries that vnetd runs with."""
        python = "/usr/bin/python3" if self._root else sys.executable
        return ("env", f"PYTHONPATH={TREE}", python, *argv)

    def _make_uplink(self) -> None:
        self.sh(f"""
            ip netns add wan
            ip link add uplink0 type veth peer name eth0 netns wan
            ip addr add {UPLINK}/24 dev uplink0
            ip addr add {UPLINK_IPV6}/64 dev uplink0 nodad
            ip link set uplink0 up
            ip -n wan link set lo up
            ip -n wan addr add {WAN}/24 dev eth0
            ip -n wan addr add {WAN_IPV6}/64 dev eth0 nodad
            ip -n wan link set eth0 up
            ip route add default via {WAN}
            ip -6 route add default via {WAN_IPV6}
        """)
        self.spawn("wan", *self._module("tests.lab.echo"), guest="wan")

    def _make_tools(self) -> None:
        """On another system the distribution's libraries are what vnetd runs with."""
        if self._root:
            for name, module in (("vnetd", "vnetd"), ("vnetctl", "vnetd.cli.main")):
                path, run = f"/usr/local/bin/{name}", shlex.join(self._module(module))
                self.write(path, f'#!/bin/sh\nexec {run} "$@"\n')
                self.run("chmod", "+x", path)

    def _module(self, name: str) -> tuple[str, ...]:
        return self.python("-m", name)


def _settings(unit: str, name: str) -> list[str]:
    """The values of all lines of this name in a file of systemd/."""
    return re.findall(rf"^{name}=(.*)", (TREE / "systemd" / unit).read_text(), re.MULTILINE)
