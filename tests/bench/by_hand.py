"""What an admin would do in vnetd's place, and how long that takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from tests.lab.hypervisor import Hypervisor

_COMMANDS = ("iptables", "ip6tables")

# In the box, so that entering it does not count.
_TIMED = """
import json, resource, subprocess, sys, time
began = time.monotonic()
subprocess.run(["sh", "-ec", sys.argv[1]], check=True, stdout=subprocess.DEVNULL)
ms = 1000 * (time.monotonic() - began)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([ms, 1000 * (used.ru_utime + used.ru_stime)]))
"""
# linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES. A transaction is told of when it is in force.
_WATCHED = """
import select, socket, subprocess, sys, time
events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
events.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)
events.bind((0, 0))
events.setsockopt(270, 1, 7)
told = []
with subprocess.Popen(["sh", "-ec", sys.argv[1]]) as script:
    while True:
        ended = script.poll() is not None
        if select.select([events], [], [], 0 if ended else 0.1)[0]:
            events.recv(1 << 20)
            told.append(time.monotonic())
        elif ended:
            break
if script.returncode:
    sys.exit(f"exit status {script.returncode}")
print(1000 * (told[-1] - told[0]))
"""


def restore(box: Hypervisor, damage: str) -> str:
    """A script that puts back what this takes away."""
    before = _saves(box)
    box.sh(damage)
    script = ""
    for command, good, bad in zip(_COMMANDS, before, _saves(box), strict=True):
        if rules := _lost(good, bad):
            box.write(f"/run/box/{command}.rules", rules)
            script += f"{command}-restore --noflush /run/box/{command}.rules\n"
    box.sh(script)
    return script


def between(box: Hypervisor, script: str) -> float:
    """From the kernel's word of its first transaction to that of its last, in ms."""
    return float(box.run(sys.executable, "-c", _WATCHED, script))


def timed(box: Hypervisor, script: str) -> tuple[float, float]:
    """How long it takes, and its CPU time, in ms."""
    ms, cpu = json.loads(box.run(sys.executable, "-c", _TIMED, script))
    return ms, cpu


def _lost(good: str, bad: str) -> str:
    """For iptables-restore --noflush: what one iptables-save printed and the next does not."""
    left = set(_lines(bad))
    tables: dict[str, list[str]] = {}
    for table, line in _lines(good):
        if (table, line) not in left:
            tables.setdefault(table, []).append(line)
    return "".join(
        f"*{table}\n" + "".join(f"{line}\n" for line in lines) + "COMMIT\n"
        for table, lines in tables.items()
    )


def _lines(save: str) -> Iterator[tuple[str, str]]:
    """(table, line) of each chain and rule; counters are no difference."""
    table = ""
    for line in save.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            yield table, line.partition(" [")[0] + " [0:0]"
        elif line.startswith("-A "):
            yield table, line


def _saves(box: Hypervisor) -> tuple[str, str]:
    ipv4, ipv6 = (box.run(f"{command}-save") for command in _COMMANDS)
    return ipv4, ipv6
