"""vnetd dies, fails or hangs in the middle of a repair, or there is more than one."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host
from tests.lab.machine import Machine

# Several systems have something to do for it, step by step.
_DAMAGE = """
nft flush ruleset
virsh -q net-destroy lab; virsh -q net-undefine routed
ip link set vbquiet down; echo 0 >/proc/sys/net/ipv4/ip_forward
"""
_OTHERS_HEALED = "grep 1 /proc/sys/net/ipv4/ip_forward && ip link show up | grep vbquiet:"
# For vnetd alone: libvirt, which is root, would hang with it in the next step.
_IPTABLES_HANGS = r"""
cp /usr/sbin/xtables-nft-multi /run/box/xtables
cat >/run/box/hang <<'END'
#!/bin/bash
[ $UID != 0 ] || exec -a "$0" /run/box/xtables "$@"
exec sleep 600
END
chmod +x /run/box/hang
mount --bind /run/box/hang /usr/sbin/xtables-nft-multi
"""
_KILLS, _SEED = 10, 95

# vnetd, but for what happens in place of its n-th action.
_UNTIL = """
import asyncio, os, signal, sys
from vnetd import daemon, watchdog
from vnetd.__main__ import main
from vnetd.errors import BackendError

number, what = int(sys.argv.pop(1)), sys.argv.pop(1)
done = 0

def failing(apply):
    async def step(self, action):
        global done
        done += 1
        if done == number:
            print("here:", self.source, str(action), flush=True)
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "error":
                raise BackendError("tested")
            while not os.path.exists("/run/box/hangs"):
                await asyncio.sleep(0.01)
        await apply(self, action)
    return step

os.environ["WATCHDOG_USEC"] = "1000000"
watchdog.systemd.notify = lambda text, *_: print(text, flush=True)  # there is no systemd
for kind in {kind for kind in vars(daemon).values() if isinstance(kind, type)}:
    if hasattr(kind, "apply") and hasattr(kind, "observe"):
        kind.apply = failing(kind.apply)
sys.exit(main())
"""


def _is_over(box: Machine, process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None or box.state() not in ("", "healing")


@contextmanager
def _libvirt_hangs(host: Host) -> Iterator[str]:
    host.box.signal("libvirtd", signal.SIGSTOP)
    yield "libvirt has given no answer"
    host.box.signal("libvirtd", signal.SIGCONT)


@contextmanager
def _iptables_hangs(host: Host) -> Iterator[str]:
    host.run(_IPTABLES_HANGS)
    yield "no end after"
    host.run("umount --lazy /usr/sbin/xtables-nft-multi")  # some may run it just now


# The other steps are the kernel's, which does them before it returns.
_HANGS = {"libvirt": _libvirt_hangs, "firewall": _iptables_hangs}


def _hang_there(host: Host, said: int) -> None:
    """What the step calls does not come back; it is told, all that needs none of it is healed, and
    the watchdog is fed.
    """
    box = host.hypervisor

    def here() -> str:
        return box.log("vnetd")[said:].partition("here: ")[2].partition(" ")[0]

    box.wait_until(lambda: bool(here()) or box.state() not in ("", "healing"), what="the step")
    if here() not in _HANGS:
        box.sh("touch /run/box/hangs")
        return
    with _HANGS[here()](host) as told:
        box.sh("touch /run/box/hangs")
        host.wait_until_said(told)
        so_far = len(box.log("vnetd"))
        box.wait_until(lambda: "WATCHDOG=1" in box.log("vnetd")[so_far:], what="the watchdog fed")
        box.wait_until(
            lambda: box.succeeds("sh", "-c", _OTHERS_HEALED), what="the others are healed"
        )


def at_each_step(what: str, host: Host) -> None:
    box, good = host.hypervisor, host.facts()
    for number in range(1, 100):
        box.kill("vnetd", signal.SIGKILL)
        # with the lock it would wait with the next start
        box.sh("rm -f /run/vnetd/vnetd.lock /run/box/hangs")
        host.run(_DAMAGE)
        said = len(box.log("vnetd"))
        step = box.python("-c", _UNTIL, str(number), what)
        process = box.serve(*step, "--log-level", "debug")
        if what == "hang":
            _hang_there(host, said)
        box.wait_until(partial(_is_over, box, process), what="the end of it, or of the repair")
        if process.poll() is not None:
            box.spawn_vnetd("--log-level", "debug")
        box.wait_until(
            lambda: box.state() == "converged" and host.facts() == good,
            seconds=60,
            what=f"everything as it was, after step {number}",
        )
        if "here:" not in box.log("vnetd")[said:]:
            assert number > 3, "of a repair of many steps"
            box.kill("vnetd")
            box.start_vnetd()
            return
    raise AssertionError("it has no end")


def killed_at_each_step(host: Host) -> None:
    at_each_step("kill", host)


def failing_at_each_step(host: Host) -> None:
    at_each_step("error", host)


def hanging_at_each_step(host: Host) -> None:
    at_each_step("hang", host)


def killed_at_random(host: Host) -> None:
    box, good, moments = host.hypervisor, host.facts(), random.Random(_SEED)
    for number in range(_KILLS):
        host.run(_DAMAGE)
        time.sleep(moments.uniform(0, 0.5))  # the moment to die at, not a wait
        box.kill("vnetd", signal.SIGKILL)
        box.sh("rm -f /run/vnetd/vnetd.lock")
        box.start_vnetd()
        box.wait_until(
            lambda: box.state() == "converged" and host.facts() == good,
            seconds=60,
            what=f"everything as it was, after kill {number}",
        )


def stopped_in_a_repair(host: Host) -> None:
    host.run(_DAMAGE)
    host.box.wait_for_state("healing")
    assert host.box.kill("vnetd") == 0
    host.hypervisor.start_vnetd()


def second(host: Host) -> None:
    box = host.hypervisor
    done = box.attempt(*box.as_service(box.tool("vnetd")))
    assert done.returncode == 1
    assert "already running" in done.stderr


FAULTS = (
    Fault(
        "killed-at-each-step",
        "vnetd is killed at each step of a repair, one by one",
        killed_at_each_step,
        restarts=("vnetd",),
        long=True,
        seconds=900,
    ),
    Fault(
        "error-at-each-step",
        "each step of a repair fails once, one by one",
        failing_at_each_step,
        restarts=("vnetd",),
        long=True,
        seconds=900,
    ),
    Fault(
        "hang-at-each-step",
        "each step of a repair that can hang does, one by one: libvirtd is stopped, or iptables "
        "never ends",
        hanging_at_each_step,
        restarts=("vnetd",),
        long=True,
        seconds=900,
    ),
    Fault(
        "killed-at-random",
        f"vnetd is killed at {_KILLS} random moments of a repair",
        killed_at_random,
        restarts=("vnetd",),
        long=True,
    ),
    Fault(
        "stopped-in-a-repair",
        "vnetd is stopped in the middle of a repair, and started again",
        stopped_in_a_repair,
        restarts=("vnetd",),
        long=True,
    ),
    Fault("second", "another vnetd is started", second, Outcome.REFUSED, long=True),
)
