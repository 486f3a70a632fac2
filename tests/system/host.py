"""A whole host: a Debian that boots in a container, with the package of this tree to install.

    with Host("trixie") as host:
        host.boot()
        host.install(package)
        host.reboot()
        host.power_cut()

Each boot has a network namespace of its own, so that links, rules and sysctls are as gone as on
metal; the disk stays. Needs systemd-nspawn, and nothing of this machine's own network or systemd.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.lab.init import QEMU_CONF, TC
from tests.lab.machine import CACHE, TREE, UPLINK, UPLINK_IPV6, WAN, WAN_IPV6, LabError, Machine
from tests.system import outside

_SECONDS = 60.0  # for a boot, or for a shutdown
_POWERED_OFF, _REBOOTS = 0, 133  # systemd-nspawn(1) with --keep-unit
_numbers = itertools.count(1)

# The clock and the modules are this machine's own: no sys_time, sys_module, sys_rawio.
_CAPABILITIES = "CAP_NET_ADMIN,CAP_IPC_LOCK,CAP_BPF,CAP_PERFMON,CAP_SYSLOG"

# No use in a container, or not there, or of no concern and slow.
_MASKED = (
    "console-getty.service",
    "dev-hugepages.mount",
    "libvirt-guests.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-networkd-wait-online.service",
)
_FILES = {
    "/etc/hostname": "host\n",
    # libvirt looks its own host name up before it starts a guest: there is no DNS.
    "/etc/hosts": "127.0.0.1 localhost host\n",
    "/etc/resolv.conf": "",
    "/etc/systemd/network/uplink.network": f"""\
[Match]
Name=uplink0
[Network]
Address={UPLINK}/24
Address={UPLINK_IPV6}/64
Gateway={WAN}
Gateway={WAN_IPV6}
LinkLocalAddressing=no
IPv6AcceptRA=no
IPv6DuplicateAddressDetection=0
""",
    # libvirt 11.3 now and then hangs for 30 s when it is told to end, and extends the time for it.
    "/etc/systemd/system/libvirtd.service.d/lab.conf": """\
[Service]
SuccessExitStatus=SIGKILL
ExecStop=/bin/kill -TERM $MAINPID
ExecStop=-/usr/bin/timeout 2 tail --pid=$MAINPID -f /dev/null
ExecStop=-/bin/kill -KILL $MAINPID
""",
    "/etc/libvirt/qemu.conf": QEMU_CONF,
    "/usr/local/sbin/tc": TC,
}


class Host(Machine):
    confined = ("setpriv", "--bounding-set=-sys_time,-sys_module,-sys_rawio")

    def __init__(self, release: str) -> None:
        super().__init__()
        self.release = release
        self._name = f"vnetd-lab-{os.getpid()}-{next(_numbers)}"
        self._outside_pid = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._cleanup:  # whatever fails below, nothing stays behind
            self._surround()
            self._furnish()
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _surround(self) -> None:
        namespaces = ("--mount", "--net", "--pid", "--ipc", "--propagation=unchanged")
        unshare = ("unshare", *namespaces, "--fork", "--kill-child")
        tree = CACHE / f"host-{self.release}"
        around = subprocess.Popen(
            [*unshare, sys.executable, "-m", "tests.system.outside", str(tree), self._name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=TREE,
        )
        self._cleanup.callback(self._clear, around)
        assert around.stdout is not None, "stdout is a pipe"
        word, _, pid = around.stdout.readline().decode().partition(" ")
        if word != "ready":
            raise LabError("the host has no surroundings; what they said is above")
        self._outside_pid = int(pid)

    def _clear(self, around: subprocess.Popen[bytes]) -> None:
        """Everything of the host ends with what is around it."""
        assert around.stdin is not None, "stdin is a pipe"
        assert around.stdout is not None, "stdout is a pipe"
        around.stdin.close()
        around.wait(30)
        around.stdout.close()
        self._wait_for_the_end()

    def _furnish(self) -> None:
        for path, text in _FILES.items():
            file = self.disk(path)
            file.unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.disk("/usr/local/sbin/tc").chmod(0o755)
        self.disk("/etc/machine-id").write_text(uuid.uuid4().hex + "\n")
        self.disk("/var/log/journal").mkdir(exist_ok=True)
        for directory in ("/etc", "/var"):
            self.disk(f"{directory}/.updated").touch()  # no ldconfig and the like at the first boot
        units = self.disk("/etc/systemd/system")
        for unit in _MASKED:
            (units / unit).symlink_to("/dev/null")
        wanted = units / "multi-user.target.wants/systemd-networkd.service"
        wanted.symlink_to("/lib/systemd/system/systemd-networkd.service")

    # -- lives

    def boot(self, *, uplink: bool = True) -> None:
        """Returns when systemd has started everything. uplink: whether the cable is plugged in."""
        nspawn = [
            *("systemd-nspawn", "--quiet", "--boot", "--keep-unit", "--register=no"),
            *("--console=pipe", "--private-network", f"--directory={outside.ROOT}"),
            *(f"--machine={self._name}", f"--capability={_CAPABILITIES}"),
            *("--bind=/dev/net/tun", f"--bind-ro={TREE}"),
        ]
        cgroup = outside.CGROUPS / self._name
        script = f'echo $$ >{cgroup}/cgroup.procs; exec "$@" >>/run/console 2>&1'
        enter = self.around("-m", "-n", "-p", "-i", "-r", "-w")
        environment = ("env", "SYSTEMD_SECCOMP=0", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
        self._nspawn = subprocess.Popen(
            [*enter, *environment, "sh", "-c", script, "sh", *nspawn], stdin=subprocess.DEVNULL
        )
        self.wait_until(self._has_init, seconds=_SECONDS, what="PID 1 of the host")
        if uplink:
            self.plug_uplink()
        self.wait_until(self._has_systemd, seconds=_SECONDS, what="systemd")
        self.run("mkdir", "-p", "/run/box")
        self.attempt("systemctl", "is-system-running", "--wait")

    def _has_init(self) -> bool:
        """The third generation of pid namespaces: this one, the surroundings', the host's."""
        assert self._nspawn is not None, "booting"
        if self._nspawn.poll() is not None:
            raise LabError(f"systemd-nspawn ended: {self.console_text()[-2000:]}")
        for pid in _descendants(self._nspawn.pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = status.partition("NSpid:")[2].partition("\n")[0].split()
                # It gets its network a moment after it is there: until then it has the wan host's.
                if len(numbers) == 3 and numbers[2] == "1" and self._has_network(pid):
                    self._init_pid = pid
                    return True
        return False

    def _has_network(self, pid: int) -> bool:
        own, outer = (os.readlink(f"/proc/{one}/ns/net") for one in (pid, self._outside_pid))
        return own != outer

    def _has_systemd(self) -> bool:
        return self.path("/run/systemd/private").is_socket()

    def plug_uplink(self) -> None:
        self.plug("uplink0", "wan0", f"{WAN}/24", f"{WAN_IPV6}/64")

    def plug(self, link: str, far: str, *addresses: str) -> None:
        """A cable from a new link of the host to one of the wan host's, with these addresses."""
        self.outside(f"""
            ip link delete {far} 2>/dev/null || true # of a life before, which ends in its time
            ip link add {far} type veth peer name {link} netns {self._init_pid}
            ip link set {far} up
        """)
        for address in addresses:
            nodad = "nodad" if ":" in address else ""
            self.outside(f"ip addr add {address} dev {far} {nodad}")

    def outside(self, script: str) -> str:
        """Run on the wan host."""
        done = subprocess.run(
            [*self.around("-n"), "sh", "-ec", script], capture_output=True, text=True
        )
        if done.returncode:
            raise LabError(f"outside: {done.stderr}")
        return done.stdout

    def shut_down(self, how: str = "poweroff") -> None:
        self.attempt("systemctl", how)
        expected = _REBOOTS if how == "reboot" else _POWERED_OFF
        if (status := self._wait_for_the_end()) != expected:
            raise LabError(f"{how}: systemd-nspawn ended with {status}")

    def reboot(self, *, uplink: bool = True) -> None:
        self.shut_down("reboot")
        self.boot(uplink=uplink)

    def cut_power(self) -> None:
        """As if: nothing of the host runs on, what was on its disk stays."""
        os.kill(self._init_pid, signal.SIGKILL)
        self._wait_for_the_end()

    def _wait_for_the_end(self) -> int:
        for process in self._processes.values():
            process.wait(_SECONDS)
        self._processes.clear()
        status = self._nspawn.wait(_SECONDS) if self._nspawn else 0
        self._nspawn = None
        return status

    # -- what it is made of

    def around(self, *namespaces: str) -> list[str]:
        """How to run something in these namespaces of what is around the host."""
        return ["nsenter", "-t", str(self._outside_pid), *namespaces]

    def beside(self, path: str) -> Path:
        """A file of what is around the host."""
        return Path(f"/proc/{self._outside_pid}/root{path}")

    def disk(self, path: str) -> Path:
        """A file of the host, whether or not it runs."""
        return self.beside(outside.ROOT + path)

    def console_text(self) -> str:
        return self.beside("/run/console").read_text(errors="replace")

    def logs(self) -> dict[str, str]:
        if self._nspawn is None:
            return {"console": self.console_text()}
        return super().logs() | {"journal": self.run("journalctl", "-b", "-o", "short-monotonic")}

    def tool(self, name: str) -> str:
        return name

    def _module(self, name: str) -> tuple[str, ...]:
        return ("env", f"PYTHONPATH={TREE}", "/usr/bin/python3", "-m", name)

    def install(self, package: Path) -> None:
        """By apt, which takes from its cache what the package needs."""
        shutil.copy(package, self.path("/root"))
        self.apt("install", "--allow-downgrades", f"/root/{package.name}")

    def apt(self, *arguments: str) -> None:
        apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", *arguments)
        done = self.attempt(*apt, seconds=300)
        if done.returncode:
            raise LabError(f"apt-get {shlex.join(arguments)}: {done.stdout}{done.stderr}")


def _descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield int(child)
        yield from _descendants(int(child))
