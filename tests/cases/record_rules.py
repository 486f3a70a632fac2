"""Write down, for tests/cases/rules, the rules that real libvirts install for tests/definitions.py:

    .venv/bin/python -m tests.cases.record_rules

A file for each libvirt, backend and definition, and one with all of them at once, newest first.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.definitions import DEFINITIONS, definition
from tests.lab.canary import NAME
from tests.lab.hypervisor import TRIXIE, Hypervisor

RULES = Path(__file__).parent / "rules"
SYSTEMS: Mapping[str, tuple[Path | None, str]] = {
    "own iptables": (None, ""),
    "trixie iptables": (TRIXIE, "iptables"),
    "trixie nftables": (TRIXIE, "nftables"),
}
ALL = "all-of-them"


def box_of(system: str) -> Hypervisor:
    root, backend = SYSTEMS[system]
    return Hypervisor(root=root, backend=backend)


def in_any_order() -> list[str]:
    """Always the same one."""
    names = sorted(DEFINITIONS)
    random.Random(7).shuffle(names)
    return names


def folder(box: Hypervisor, system: str) -> Path:
    version = box.run("virsh", "version").split("library: libvirt ")[1].split()[0]
    return RULES / version / system.split()[1]


def start(box: Hypervisor, name: str, number: int) -> None:
    box.run("virsh", "net-create", "/dev/stdin", stdin=definition(name, number))


def rules(box: Hypervisor, system: str) -> str:
    """libvirt's tables, or its rules in the tables of all."""
    if system.endswith("nftables"):
        return box.tables()
    text = ""
    for command in ("iptables-save", "ip6tables-save"):
        lines = box.run(command).splitlines()
        kept = [line.split(" ")[0] if line[:1] == ":" else line for line in lines]
        text += f"# {command}\n"
        text += "".join(
            f"{x}\n" for x in kept if x[0] in "*:" or ("LIBVIRT_" in x and NAME not in x)
        )
    return text


def main() -> None:
    for system in SYSTEMS:
        with box_of(system) as box:
            out = folder(box, system)
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            for name in DEFINITIONS:
                start(box, name, 1)
                (out / name).write_text(rules(box, system))
                box.run("virsh", "net-destroy", name)
            for number, name in enumerate(in_any_order()):
                start(box, name, number)
            (out / ALL).write_text(rules(box, system))
            print(f"{out}: {len(list(out.iterdir()))} files")


if __name__ == "__main__":
    main()
