"""What tests do with a machine, however it was made: run things in it, break it, watch its guests.

Hypervisor makes one of this machine's own system for a single test; tests/system/host.py boots one.
"""

from __future__ import annotations

import contextlib
import json
import select
import shlex
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.lab.canary import NAME, Canary
from tests.lab.probe import STEP_SECONDS, Outage

LAB = Path(__file__).resolve().parent
TREE = LAB.parents[1]
CACHE = TREE / ".lab"
POLICY = "/etc/vnetd/vnetd.toml"

UPLINK, UPLINK_IPV6 = "198.51.100.1", "2001:db8:1::1"
WAN, WAN_IPV6 = "198.51.100.2", "2001:db8:1::2"

_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    "LIBVIRT_DEFAULT_URI=qemu:///system",
    "PYTHONDONTWRITEBYTECODE=1",
)

_ANSWER_SECONDS = 30.0


class LabError(Exception):
    """Something in the box failed; the text holds what it said."""


class Machine(ABC):
    confined: tuple[str, ...] = ()
    """What takes rights from all that is run there."""

    def __init__(self) -> None:
        self._init_pid = 0
        """Of its PID 1, seen from outside."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guests = 0
        self.canary: Canary | None = None
        """Other people's things, where there are any."""

    @abstractmethod
    def tool(self, name: str) -> str:
        """vnetd or vnetctl there."""

    @abstractmethod
    def _module(self, name: str) -> tuple[str, ...]:
        """How to run a module of the lab there."""

    def vnetctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.attempt(self.tool("vnetctl"), *arguments)

    def vnetctl_json(self, *arguments: str) -> Any:
        done = self.vnetctl("--json", *arguments)
        if done.returncode not in (0, 3):
            raise LabError(f"vnetctl {' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout)

    def load(self, policy: str) -> None:
        """Put this policy in force; returns after a pass. Raises LabError if it is rejected."""
        self.write(POLICY, policy)
        self.run(self.tool("vnetctl"), "reload")
        self.vnetctl("reconcile")

    @contextlib.contextmanager
    def policy(self, text: str) -> Iterator[None]:
        """This policy in force, then the one before again."""
        before = self.run("cat", POLICY)
        self.load(text)
        try:
            yield
        finally:
            self.load(before)
            self.wait_for_state("converged")

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
        if self.canary is not None:
            argv = tuple(self.canary.sparing(argv))
        return [*enter, *self.confined, "env", "-i", *_ENVIRONMENT, *netns, *argv]

    def attempt(
        self, *argv: str, guest: str | None = None, stdin: str | None = None, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*argv, guest=guest),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
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
        if number is signal.SIGCONT:  # nsenter has stopped with it
            self._processes[name].send_signal(number)

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
        """Both families as their -save tools print them, without counters, times and canary."""
        text = self.run("iptables-save") + self.run("ip6tables-save")
        lines = [ln for ln in text.splitlines() if ln[:1] != "#" and NAME not in ln]
        return "\n".join(line.rpartition(" [")[0] if line[:1] == ":" else line for line in lines)

    def sorted_rules(self) -> list[str]:
        """Whatever the order of the networks: libvirt rewrites them in one of its own."""
        return sorted(self.rules().splitlines())

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
        _, deleted, rest = self.log("nft-monitor").rpartition("delete table inet box")
        return bool(deleted) and "generation" in rest  # which is told last

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

    def answer_in(self, guest: str | None) -> None:
        """The guest answers probes; None: the host."""
        self.spawn(f"echo-{guest or 'host'}", *self._module("tests.lab.echo"), guest=guest)

    def pings(self, guest: str, address: str) -> bool:
        return self.succeeds("ping", "-qc1", "-W1", address, guest=guest)

    def asks(self, guest: str, *question: str) -> bool:
        """Whether what a guest asks (dns SERVER, dhcp INTERFACE, tcp ADDRESS PORT) is answered."""
        return self.succeeds(*self._module("tests.lab.ask"), *question, guest=guest)

    @contextlib.contextmanager
    def probing(
        self,
        guest: str | None,
        address: str = WAN,
        *,
        in_vain: bool = False,
        step: float = STEP_SECONDS,
    ) -> Iterator[Outage]:
        """Open a new flow from the guest (None: the host) every step (seconds) meanwhile; the
        outcome is in the Outage. in_vain: do not wait for a first answer, for there should be none.
        """
        outage = Outage()
        words = (address, str(step), *(("in-vain",) if in_vain else ()))
        with subprocess.Popen(
            self.argv(*self._module("tests.lab.probe"), *words, guest=guest),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None, "stdout is a pipe"
            if not select.select([process.stdout], [], [], _ANSWER_SECONDS)[0]:
                process.kill()
                raise LabError(f"{address} has answered no probe in {_ANSWER_SECONDS} s")
            process.stdout.readline()  # it is at work
            try:
                yield outage
            finally:
                out, _ = process.communicate(timeout=60)  # closing its stdin ends it
        outage.read(out)

    @contextlib.contextmanager
    def pinging(self) -> Iterator[list[float]]:
        """Ask vnetd on the bus all the time meanwhile; then the list holds how long the longest
        answer took, in ms.
        """
        longest: list[float] = []
        argv = self.argv(*self._module("tests.lab.pings"))
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None, "stdout is a pipe"
            process.stdout.readline()  # it is at work
            try:
                yield longest
            finally:
                out, _ = process.communicate(timeout=60)  # closing its stdin ends it
        longest.append(float(out))

    @contextlib.contextmanager
    def talking(self, address: str = WAN) -> Iterator[Callable[[], int]]:
        """One TCP connection of the host to the wan meanwhile; gives how many answers came."""
        talk, port = self._module("tests.lab.talk"), "7001"
        self.spawn("listener", *talk, "listen", port, guest="wan")
        self.wait_until(lambda: "listening" in self.log("listener"), what="the wan host listens")
        self.spawn("talk", *talk, "to", address, port)

        def answers() -> int:
            return len(self.log("talk").splitlines())

        try:
            self.wait_until(lambda: answers() > 0, what="a first answer")
            yield answers
        finally:
            self.kill("talk", signal.SIGKILL)
            self.kill("listener", signal.SIGKILL)


# nsenter does not pass signals on: the pid inside is what can be killed.
_SPAWN = 'echo $$ >"/run/box/$0.pid"; exec "$@" >>"/run/box/$0.log" 2>&1'
