"""The box from outside: bring it up, run things in it, take it down.

    with Hypervisor() as box:
        box.start_vnetd(POLICY)
        guest = box.guest("lab", "10.77.0.50/24", gateway="10.77.0.1")
        box.run("iptables", "-t", "nat", "-F")

Hypervisor(root=TRIXIE) is one of Debian 13 and its libvirt, whatever this machine is; backend and
variant choose libvirt's firewall_backend and which iptables it finds.

The link uplink0 leads to the host "wan", which answers probes and knows no way to guests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.lab.probe import Outage

LAB = Path(__file__).resolve().parent
TREE = LAB.parents[1]
CACHE = TREE / ".lab"
TRIXIE = CACHE / "trixie"
BIN = Path(sys.prefix) / "bin"

UPLINK, UPLINK_IPV6 = "198.51.100.1", "2001:db8:1::1"
WAN, WAN_IPV6 = "198.51.100.2", "2001:db8:1::2"

_T = TypeVar("_T")
_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    "LIBVIRT_DEFAULT_URI=qemu:///system",
    "PYTHONDONTWRITEBYTECODE=1",
)


class LabError(Exception):
    """Something in the box failed; the text holds what it said."""


class Hypervisor:
    def __init__(
        self, *, root: Path | None = None, backend: str = "", variant: str = "nft"
    ) -> None:
        self._root = root
        self._backend = backend
        self._variant = variant
        self._cleanup = contextlib.ExitStack()
        self._init_pid = 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guests = 0

    def __enter__(self) -> Self:
        with self._cleanup:  # whatever fails below, nothing stays behind
            self._up()
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

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
        self._make_tools()
        self._make_uplink()
        self.start_bus()
        if self._backend:
            self.set_backend(self._backend)
        self.set_variant(self._variant)
        self.start_libvirtd()

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
        self.spawn("bus", "dbus-daemon", "--system", "--nofork", "--nopidfile")
        self.wait_until(lambda: self.succeeds("test", "-S", "/run/dbus/system_bus_socket"))

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

    def start_vnetd(self, policy: str | None = None, *arguments: str) -> None:
        """The daemon of this tree; returns when it is on the bus and its first pass is over."""
        if policy is not None:
            self.write("/etc/vnetd/vnetd.toml", policy)
        self.spawn("vnetd", self.tool("vnetd"), "--log-level", "debug", *arguments)
        self.wait_until(lambda: self.state() not in ("", "healing"), what="vnetd's first pass")

    def tool(self, name: str) -> str:
        """A program of this tree."""
        return f"/usr/local/bin/{name}" if self._root else str(BIN / name)

    def vnetctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.attempt(self.tool("vnetctl"), *arguments)

    def vnetctl_json(self, *arguments: str) -> Any:
        done = self.vnetctl("--json", *arguments)
        if done.returncode not in (0, 3):
            raise LabError(f"vnetctl {' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout)

    def state(self) -> str:
        """vnetd's own word; "" while it is not on the bus."""
        done = self.vnetctl("--json", "status")
        return str(json.loads(done.stdout)["State"]) if done.stdout else ""

    def history(self) -> list[dict[str, Any]]:
        done = self.vnetctl("--json", "history")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wait_for_state(self, state: str) -> None:
        self.wait_until(lambda: self.state() == state, what=f"state {state}")

    # -- running things

    def argv(self, *argv: str, guest: str | None = None) -> list[str]:
        """How to run this from outside."""
        enter = ["nsenter", "-t", str(self._init_pid), "-m", "-n", "-p", "-u", "-i", "-r", "-w"]
        netns = ["ip", "netns", "exec", guest] if guest else []
        return [*enter, "env", "-i", *_ENVIRONMENT, *netns, *argv]

    def attempt(
        self, *argv: str, guest: str | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*argv, guest=guest),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def run(self, *argv: str, guest: str | None = None, stdin: str | None = None) -> str:
        """Its output. Raises LabError if it fails."""
        done = self.attempt(*argv, guest=guest, stdin=stdin)
        if done.returncode:
            raise LabError(f"{shlex.join(argv)}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def sh(self, script: str) -> str:
        return self.run("sh", "-ec", script)

    def succeeds(self, *argv: str, guest: str | None = None) -> bool:
        return self.attempt(*argv, guest=guest).returncode == 0

    def spawn(self, name: str, *argv: str, guest: str | None = None) -> subprocess.Popen[bytes]:
        """Run in the background, for kill() and log() by this name."""
        if name in self._processes:
            self._processes[name].wait(30)
        pidfile = self.path(f"/run/box/{name}.pid")
        pidfile.unlink(missing_ok=True)
        process = subprocess.Popen(
            self.argv("sh", "-c", _SPAWN, name, *argv, guest=guest), stdin=subprocess.DEVNULL
        )
        self._processes[name] = process
        self.wait_until(lambda: pidfile.exists() and bool(pidfile.read_text()), what=name)
        return process

    def pid(self, name: str) -> int:
        """Its pid in the box."""
        return int(self.path(f"/run/box/{name}.pid").read_text())

    def kill(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; its exit status."""
        self.signal(name, number)
        return self._processes.pop(name).wait(60)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.sh(f"kill -{number.value} {self.pid(name)}")

    def log(self, name: str) -> str:
        path = self.path(f"/run/box/{name}.log")
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> dict[str, str]:
        return {path.stem: self.log(path.stem) for path in self.path("/run/box").glob("*.log")}

    def path(self, inside: str) -> Path:
        """A file of the box, seen from outside."""
        return Path(f"/proc/{self._init_pid}/root{inside}")

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", 'mkdir -p "${1%/*}"; cat > "$1"', "sh", path, stdin=text)

    def wait_until(
        self, holds: Callable[[], bool], *, seconds: float = 20.0, what: str = ""
    ) -> None:
        """Raises LabError when it still does not hold after so long."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise LabError(f"waited {seconds:.0f} s in vain: {what or 'a condition'}")
            time.sleep(0.01)

    def wait_until_quiet(self, name: str, *, seconds: float = 3.0) -> str:
        """Wait until this process has said nothing for so long; returns its log so far."""
        said, since = self.log(name), time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(0.05)
            if (now := self.log(name)) != said:
                said, since = now, time.monotonic()
        return said

    # -- firewall

    def rules(self) -> str:
        """Both families as their -save tools print them, without counters and times."""
        text = self.run("iptables-save") + self.run("ip6tables-save")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return "\n".join(line.rpartition(" [")[0] if line[:1] == ":" else line for line in lines)

    def tables(self) -> str:
        """The tables of libvirt's nftables backend, without counters."""
        lines = [
            self.attempt("nft", "-s", "list", "table", family, "libvirt_network").stdout
            for family in ("ip", "ip6")
        ]
        return "".join(lines)

    @contextlib.contextmanager
    def watching_nftables(self) -> Iterator[Callable[[], list[str]]]:
        """Gives the names of the processes that have changed nf_tables since, one a transaction."""
        self.spawn("nft-monitor", "nft", "monitor")
        self.wait_until(lambda: self._seen_by_monitor())
        already = len(self.log("nft-monitor"))

        def writers() -> list[str]:
            lines = self.log("nft-monitor")[already:].splitlines()
            return [line.rpartition("(")[2].rstrip(")") for line in lines if "generation" in line]

        try:
            yield writers
        finally:
            self.kill("nft-monitor")

    def _seen_by_monitor(self) -> bool:
        self.sh("nft add table inet box; nft delete table inet box")
        return "delete table inet box" in self.log("nft-monitor")

    # -- guests

    def guest(self, bridge: str, *addresses: str, gateway: str = "", tap: str = "") -> str:
        """A namespace whose veth end plays the tap, plugged into a bridge. Its name."""
        name = self._new_guest()
        tap = tap or f"tap-{name}"
        self.sh(f"""
            ip link add {tap} type veth peer name eth0 netns {name}
            ip link set {tap} master {bridge} up
        """)
        self._set_up_guest(name, "eth0", addresses, gateway)
        return name

    def domain_guest(self, network: str, *addresses: str, gateway: str = "", xml: str = "") -> str:
        """A real libvirt domain with a real tap, whose wire ends in a namespace in place of a
        guest system: a domain that is there at once, and a guest that can run any program.

        qemu joins libvirt's netdev with a tap of its own in a hub; the virtual NIC goes nowhere.
        xml: more of the <interface>. The domain, its namespace and its wire share the name.
        """
        name = self._new_guest()
        wire, mac = f"wire-{name}", self._mac()
        self.sh(f"ip tuntap add dev {wire} mode tap")
        self._create("domain.xml", name=name, mac=mac, network=network, wire=wire, interface=xml)
        self.sh(f"ip link set {wire} netns {name} name eth0 address {mac}")
        self._set_up_guest(name, "eth0", addresses, gateway)
        return name

    def vm(self, network: str) -> str:
        """A whole guest: a software-emulated machine with a kernel and busybox. Its name; it gets
        its address by DHCP and says on console() whether it reaches the wan.
        """
        self._guests += 1
        name = f"vm{self._guests}"
        guest = CACHE / "guest"
        self._create("vm.xml", name=name, mac=self._mac(), network=network, guest=guest, probe=WAN)
        return name

    def console(self, vm: str) -> str:
        path = self.path(f"/run/box/{vm}.console")
        return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""

    def _create(self, template: str, **values: object) -> None:
        xml = (LAB / template).read_text().format(**values)
        self.run("virsh", "-q", "create", "/dev/stdin", stdin=xml)

    def _mac(self) -> str:
        return f"52:54:00:00:00:{self._guests:02x}"

    def _new_guest(self) -> str:
        self._guests += 1
        name = f"g{self._guests}"
        self.run("ip", "netns", "add", name)
        return name

    def _set_up_guest(self, name: str, link: str, addresses: tuple[str, ...], gateway: str) -> None:
        self.run("ip", "-n", name, "link", "set", "lo", "up")
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            self.run("ip", "-n", name, "addr", "add", address, "dev", link, *nodad)
        self.run("ip", "-n", name, "link", "set", link, "up")
        if gateway:
            self.run("ip", "-n", name, "route", "add", "default", "via", gateway)
            # A bridge port with STP on forwards nothing for the first seconds.
            self.wait_until(lambda: self.pings(name, gateway), what=f"{name} reaches {gateway}")

    def answer_in(self, guest: str) -> None:
        """The guest answers probes."""
        self.spawn(f"echo-{guest}", *self._module("tests.lab.echo"), guest=guest)

    def pings(self, guest: str, address: str) -> bool:
        return self.succeeds("ping", "-qc1", "-W1", address, guest=guest)

    def asks(self, guest: str, *question: str) -> bool:
        """Whether what a guest asks (dns SERVER, dhcp INTERFACE, tcp ADDRESS PORT) is answered."""
        return self.succeeds(*self._module("tests.lab.ask"), *question, guest=guest)

    @contextlib.contextmanager
    def probing(
        self, guest: str | None, address: str = WAN, *, in_vain: bool = False
    ) -> Iterator[Outage]:
        """Open a new flow from the guest (None: the host) every 2 ms meanwhile; the outcome is in
        the Outage. in_vain: do not wait for a first answer, for there should be none.
        """
        outage = Outage()
        words = (address, "in-vain") if in_vain else (address,)
        with subprocess.Popen(
            self.argv(*self._module("tests.lab.probe"), *words, guest=guest),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None, "stdout is a pipe"
            process.stdout.readline()  # it is at work
            try:
                yield outage
            finally:
                out, _ = process.communicate(timeout=60)  # closing its stdin ends it
        outage.read(out)

    def _make_uplink(self) -> None:
        self.sh(f"""
            mkdir -p /run/box
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
        python = "/usr/bin/python3" if self._root else sys.executable
        return ("env", f"PYTHONPATH={TREE}", python, "-m", name)


# nsenter does not pass signals on: the pid inside is what can be killed.
_SPAWN = 'echo $$ >"/run/box/$0.pid"; exec "$@" >>"/run/box/$0.log" 2>&1'
