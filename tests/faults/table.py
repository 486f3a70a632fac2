"""The catalogue as it came out last, as a table: python -m tests.faults.table [FILE]."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.catalogue import GROUPS
from tests.faults.elsewhere import ELSEWHERE
from tests.faults.test_faults import ROWS

_HEAD = """\
# Faults

What breaks guests' networks while libvirt says that all is well, and what vnetd makes of it. Made
by `./dev test --faults`, on real libvirtds, under a guest that opens a new flow every 2 ms.

Run from {first} to {last} UTC, on Linux {kernel} with {cpus} CPUs,
two hosts at a time, under a load average of {load}. *Healed* is vnetd's own time from the
first notice to verified; *told* is how long it took until `vnetctl status` named what must be
undone by hand, which it then is: that time is in the gap. *Records* is how many the history then
has of the network. *Lost* is how many of the guest's new flows failed, *gap* the longest time in
which none succeeded, *answer* the longest that vnetd let anybody on the bus wait, while there was
a bus.

"""


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for system in sorted({row["system"] for row in rows}):
        lines += [f"## {system}", ""]
        mine = {row["id"]: row for row in rows if row["system"] == system}
        for title, faults in GROUPS.items():
            lines += [
                f"| {title} | outcome | healed | told | records | lost | gap | answer |",
                "|---|---|---|---|---|---|---|---|",
                *(_line(mine[fault.id]) for fault in faults if fault.id in mine),
                "",
            ]
    return "\n".join(lines)


def elsewhere() -> str:
    lines = ["## Seen in other tests", "", "| fault | test |", "|---|---|"]
    for file, tests in ELSEWHERE.items():
        lines += [f"| {what} | {file}::{test} |" for what, test in tests.items()]
    return "\n".join([*lines, ""])


def _line(row: dict[str, Any]) -> str:
    healed, told = (
        "" if row[key] is None else f"{row[key]} ms" for key in ("healed_ms", "told_ms")
    )
    lost = f"{row['lost']} of {row['sent']}"
    words = (row["what"], row["outcome"], healed, told, row["incidents"], lost)
    times = f"{row['gap_ms']} ms | {row['answer_ms']} ms"
    return f"| {' | '.join(str(word) for word in words)} | {times} |"


def main() -> None:
    paths = sorted(ROWS.glob("*.json"))
    rows = [json.loads(path.read_text()) for path in paths]
    text = table(rows)
    print(text)
    if len(sys.argv) > 1:
        loads = [row["load"] for row in rows]
        times = [datetime.fromtimestamp(path.stat().st_mtime, UTC) for path in paths]
        head = _HEAD.format(
            first=f"{min(times):%Y-%m-%d %H:%M}",
            last=f"{max(times):%Y-%m-%d %H:%M}",
            kernel=platform.release(),
            cpus=os.cpu_count(),
            load=f"{min(loads):.1f} to {max(loads):.1f}",
        )
        Path(sys.argv[1]).write_text(head + text + elsewhere())


if __name__ == "__main__":
    main()
