"""./dev bench bus: what users who mean no good cost vnetd and those it heals.

First vnetd heals in quiet, then while six of them do their worst on its bus (tests/lab/hostile.py),
then in quiet again. Raw figures are printed as they come; ratios are of medians. Exit status 1 if
healing took more than 3 times as long, memory is not back within 10 %, or anything else is left.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

from tests.integration.test_hostile import CLIENTS, POLICY, resident
from tests.lab.hypervisor import Hypervisor

# In turns: the same again and again would be a fight, in which vnetd waits.
DAMAGE = (
    ("nat", "LIBVIRT_PRT -s 10.77.0.0/24 -d 224.0.0.0/24 -j RETURN"),
    ("filter", "LIBVIRT_FWX -i vblab -o vblab -j ACCEPT"),
)
_MOST_RATIO, _MOST_GROWTH = 3.0, 1.10


def heal(box: Hypervisor, number: int) -> int:
    """Milliseconds from the flush to the rule that is back, seen by asking for it."""
    table, rule = DAMAGE[number % len(DAMAGE)]
    took = box.sh(f"""
        began=$(date +%s%N)
        iptables -t {table} -F
        until iptables -t {table} -C {rule} 2>/dev/null; do :; done
        echo $((($(date +%s%N) - began) / 1000000))
    """)
    return int(took)


def heals(box: Hypervisor, name: str, seconds: float, pause: float) -> list[int]:
    found: list[int] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(found) < 2 * len(DAMAGE):
        found.append(heal(box, len(found)))
        time.sleep(pause)  # between two samples, not for anything
    print(f"{name}: healed in {found} ms, median {median(found):.0f}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench bus", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of the flood (600)")
    parser.add_argument("--quiet", type=float, default=60, help="before and after it (60)")
    parser.add_argument("--arguments", type=int, default=1_000_000, help="to fuzz (1000000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the raw figures")
    arguments = parser.parse_args()
    with Hypervisor() as box:
        figures, wrong = run(box, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n")
    for text in wrong:
        print(f"NOT as it should be: {text}")
    return 1 if wrong else 0


def run(box: Hypervisor, arguments: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    box.start_polkit()
    box.start_vnetd(POLICY)
    box.wait_for_state("converged")
    good = box.rules()
    pause = min(2.0, arguments.quiet / 20)
    quiet = heals(box, "quiet", arguments.quiet, pause)
    memory = [resident(box)]
    clients = dict(CLIENTS, fuzz=("lab-user", "fuzz", arguments.arguments))
    for name, client in clients.items():
        box.harass(name, *client)
    flooded = heals(box, "flood", arguments.seconds, pause)
    memory.append(resident(box))
    while not box.log("fuzz").endswith("}\n"):
        time.sleep(1)  # it has arguments left
    did = {}
    for name in clients:
        if name != "fuzz":
            box.kill(name)
        did[name] = json.loads(box.log(name).splitlines()[-1])
        print(f"{name}: {did[name]}")
    after = heals(box, "quiet again", arguments.quiet, pause)
    memory.append(resident(box))
    print(f"memory before, in and after the flood: {memory} KiB")
    ratio = median(flooded) / median(quiet)
    print(f"healing in the flood took {ratio:.1f} times as long")
    box.wait_for_state("converged")
    checks = {
        f"healing took {ratio:.1f} times as long": ratio <= _MOST_RATIO,
        f"memory went from {memory[0]} to {memory[-1]} KiB": memory[2] <= memory[0] * _MOST_GROWTH,
        "there is a traceback in the log": "Traceback" not in box.log("vnetd"),
        "rules are others": box.rules() == good,
        "something is left to do": box.vnetctl_json("plan") == [],
        "somebody's argument was run": not box.succeeds("test", "-e", "/tmp/owned"),
        "vnetd was paused": "paused" not in box.log("vnetd"),
    }
    figures: dict[str, object] = {
        "quiet": quiet,
        "flood": flooded,
        "after": after,
        "memory": memory,
        "did": did,
    }
    return figures, [text for text, fine in checks.items() if not fine]


if __name__ == "__main__":
    sys.exit(main())
