"""A host with a kernel of its own: for what this machine's kernel lacks, such as VLANs.

    with Host("trixie") as host:
        host.boot()
        host.install(package)
        host.shut_down()
        with Vm(host) as vm:
            vm.sh("ip link add link uplink0 name uplink0.7 type vlan id 7")

qemu emulates the machine in software: a boot takes half a minute, and nothing in it is quick. It
starts from the host's disk; what it writes stays in memory.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, Self

from tests.lab.machine import CACHE, TREE, WAN, WAN_IPV6, LabError, Machine
from tests.lab.probe import STEP_SECONDS, Outage
from tests.system import outside
from tests.system.host import Host

_BOOT_SECONDS = 600.0  # half a minute, but ten times that where others have the processors
_UPLINK_MAC = "52:54:00:99:00:01"
NICS = {"virtio": "52:54:00:99:00:02", "intel": "52:54:00:99:00:03"}
"""Cards beside the uplink, by their cables: their MACs."""
_FILES = {
    "/etc/systemd/network/10-uplink.link": f"""\
[Match]
MACAddress={_UPLINK_MAC}
[Link]
Name=uplink0
""",
    "/etc/systemd/system/agent.service": """\
[Unit]
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/agent
Environment=HOME=/root LANG=C.UTF-8 LIBVIRT_DEFAULT_URI=qemu:///system PYTHONDONTWRITEBYTECODE=1
""",
}


class Vm(Machine):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self._qemu: subprocess.Popen[bytes] | None = None
        self._agent = socket.socket(socket.AF_UNIX)
        self._answers = b""
        self._monitor = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._agent.close()
        self._monitor.close()
        if self._qemu:
            self._qemu.terminate()
            self._qemu.wait(30)

    def _boot(self) -> None:
        host = self._host
        for path, text in _FILES.items():
            host.disk(path).write_text(text)
        shutil.copy(TREE / "tests/system/agent", host.disk("/usr/local/sbin/agent"))
        host.disk("/usr/local/sbin/tc").unlink(missing_ok=True)  # this kernel has act_csum
        wanted = host.disk("/etc/systemd/system/multi-user.target.wants/agent.service")
        wanted.unlink(missing_ok=True)
        wanted.symlink_to("/etc/systemd/system/agent.service")
        kernel = CACHE.resolve() / f"kernel-{host.release}"
        host.outside(f"""
            ip link delete wan0 2>/dev/null || true
            ip tuntap add dev wan0 mode tap
            ip addr add {WAN}/24 dev wan0
            ip addr add {WAN_IPV6}/64 dev wan0 nodad
            ip link set wan0 up
            for cable in virtio intel; do
                ip tuntap add dev $cable mode tap
                ip link set $cable up
            done
        """)
        command = [
            # Two threads of emulation have let the kernel panic in cmpxchg16b.
            *("qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "max"),
            *("-m", "1536", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-serial", "file:/run/console"),
            *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initrd")),
            *("-append", f"console=ttyS0 quiet panic=1 tree={TREE}"),
            *_share("root", outside.ROOT),
            *_share("modules", str(kernel / "lib/modules")),
            *_share("tree", str(TREE)),
            *("-netdev", "tap,id=uplink,ifname=wan0,script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=uplink,mac={_UPLINK_MAC}"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", "socket,id=agent,path=/run/agent,server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=agent"),
            *("-qmp", "unix:/run/monitor,server=on,wait=off"),
            *_nic("virtio", "virtio-net-pci"),
            *_nic("intel", "e1000"),
        ]
        self._qemu = subprocess.Popen(
            [*host.around("-m", "-n", "-p", "-i", "-r", "-w"), *command], stdin=subprocess.DEVNULL
        )
        port = host.beside("/run/agent")
        self.wait_until(port.exists, what="qemu")
        self._monitor.connect(str(host.beside("/run/monitor")))
        self.monitor("qmp_capabilities")
        self._agent.connect(str(port))
        self._agent.settimeout(_BOOT_SECONDS)
        if self._answer() != "ready":
            raise LabError("the machine's agent does not say that it is ready")
        self.run("mkdir", "-p", "/run/box")

    def _answer(self) -> str:
        while b"\n" not in self._answers:
            try:
                got = self._agent.recv(65536)
            except TimeoutError:
                raise LabError(f"no answer; console: {self._host.console_text()[-3000:]}") from None
            if not got:
                raise LabError(f"it is gone; console: {self._host.console_text()[-3000:]}")
            self._answers += got
        line, _, self._answers = self._answers.partition(b"\n")
        return line.decode()

    # -- the machine itself

    def monitor(self, command: str, **arguments: object) -> None:
        """Tell qemu: what is done to the machine from outside."""
        order = {"execute": command, "arguments": arguments}
        self._monitor.sendall(json.dumps(order).encode())
        said = b""
        while b'"return"' not in said:  # events come before it
            said += (got := self._monitor.recv(65536))
            if not got or b'"error"' in said:
                raise LabError(f"{command}: {said.decode()}")

    def plug(self, nic: str, *, plugged: bool) -> None:
        """The cable of one of NICS."""
        self.monitor("set_link", name=f"{nic}-nic", up=plugged)

    # -- vnetd, without vnetctl: to start a Python takes seconds here

    def state(self) -> str:
        return str(self.fact("/org/vnetd1", "Manager", "State", missing=""))

    def history(self) -> list[dict[str, Any]]:
        records = self.ask("History")
        return [{key: _plain(value) for key, value in record.items()} for record in records]

    def ask(self, method: str, *arguments: str) -> Any:
        """One of org.vnetd1.Manager; its answer, if it has one."""
        there = ("org.vnetd1", "/org/vnetd1", "org.vnetd1.Manager", method)
        said = self.run("busctl", "--json=short", "--timeout=300", "call", *there, *arguments)
        return json.loads(said)["data"][0] if said.strip() else None

    def fact(self, path: str, interface: str, name: str, missing: Any = None) -> Any:
        """A property; missing: what it is where there is no such object."""
        there = ("org.vnetd1", path, f"org.vnetd1.{interface}", name)
        done = self.attempt("busctl", "--json=short", "get-property", *there)
        return missing if done.returncode else json.loads(done.stdout)["data"]

    # -- running things, all over one channel

    def attempt(
        self, *argv: str, guest: str | None = None, stdin: str | None = None, seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        self._agent.settimeout(seconds)
        script = shlex.join([*(("ip", "netns", "exec", guest) if guest else ()), *argv])
        if stdin is not None:
            script = f"echo {_encoded(stdin)} | base64 -d | {script}"
        self._agent.sendall(_encoded(script).encode() + b"\n")
        status, out, errors = self._answer().split(":")
        return subprocess.CompletedProcess(argv, int(status), _decoded(out), _decoded(errors))

    def healed(self, damage: str) -> list[dict[str, Any]]:
        """Do it; returns what the history says of it when all is well again."""
        records = len(self.history())
        self.sh(damage)
        told = f"a record of {damage}"
        self.wait_until(lambda: len(self.history()) > records, seconds=120, what=told)
        self.converge()
        found = self.history()[records:]
        assert {record["outcome"] for record in found} == {"repaired"}, found
        return found

    def move(self, firewall: str, how: str) -> None:
        """Let libvirt move to another firewall, without vnetd: a rule takes it a second here, so
        that it would seem to have ended in the middle.
        """
        self.converge()
        self.sh(f"""
            systemctl stop vnetd
            {how}
            systemctl restart libvirtd
            virsh net-list
            systemctl start vnetd
        """)
        self.converge()
        assert self.fact("/org/vnetd1", "Manager", "Firewall") == firewall

    def converge(self) -> None:
        self.wait_until(lambda: self.state() == "converged", seconds=300, what="all is well")

    def spawn(self, name: str, *argv: str, guest: str | None = None) -> Any:
        """Not a process here: kill() and log() know it by its name."""
        netns = ("ip", "netns", "exec", guest) if guest else ()
        command = shlex.join([*netns, *argv])
        self.sh(f"""
            rm -f /run/box/{name}.pid
            setsid sh -c 'echo $$ >/run/box/{name}.pid; exec "$@"' sh {command} \
                >/run/box/{name}.log 2>&1 &
        """)
        self.wait_until(lambda: self.succeeds("test", "-s", f"/run/box/{name}.pid"), what=name)

    def pid(self, name: str) -> int:
        return int(self.run("cat", f"/run/box/{name}.pid"))

    def kill(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Returns 0: what it ended with nobody knows."""
        pid = str(self.pid(name))
        self.signal(name, number)
        self.wait_until(lambda: not self.succeeds("kill", "-0", pid), what=f"the end of {name}")
        return 0

    def log(self, name: str) -> str:
        return self.attempt("cat", f"/run/box/{name}.log").stdout

    def logs(self) -> dict[str, str]:
        return {"console": self._host.console_text(), "journal": self.run("journalctl", "-b")}

    def tool(self, name: str) -> str:
        return name

    def _module(self, name: str) -> tuple[str, ...]:
        return self._host._module(name)

    @contextlib.contextmanager
    def probing(
        self,
        guest: str | None,
        address: str = WAN,
        *,
        in_vain: bool = False,
        step: float = STEP_SECONDS,
    ) -> Iterator[Outage]:
        """Its standard input is a pipe that a process of its own holds open."""
        words = (address, str(step), *(("in-vain",) if in_vain else ()))
        command = shlex.join([*self._module("tests.lab.probe"), *words])
        self.sh("rm -f /run/box/probe.in; mkfifo /run/box/probe.in")
        self.spawn("hold", "sh", "-c", "exec sleep infinity >/run/box/probe.in")
        self.spawn("probe", "sh", "-c", f"exec {command} </run/box/probe.in", guest=guest)
        self.wait_until(lambda: "at work" in self.log("probe"), seconds=60, what="a first answer")
        outage = Outage()
        try:
            yield outage
        finally:
            self.kill("hold")
            self.wait_until(lambda: "{" in self.log("probe"), seconds=60, what="the probe's end")
        outage.read(self.log("probe"))


def _nic(name: str, model: str) -> tuple[str, ...]:
    cable = f"tap,id={name},ifname={name},script=no,downscript=no"
    return ("-netdev", cable, "-device", f"{model},netdev={name},id={name}-nic,mac={NICS[name]}")


def _share(tag: str, path: str) -> tuple[str, str]:
    what = f"local,path={path},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"
    return "-virtfs", what


def _plain(value: Any) -> Any:
    """A variant's, as busctl shows it."""
    if isinstance(value, dict) and value.keys() == {"type", "data"}:
        return _plain(value["data"])
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode(errors="replace")
