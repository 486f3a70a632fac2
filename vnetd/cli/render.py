"""What vnetctl prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vnetd.core.wording import few
from vnetd.errors import Problem

_MOST_NOTES = 4
"""Of each network: a flush makes a dozen, the same for all."""
_GAP, _BELOW = "  ", "    "


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def complain(text: str) -> None:
    print(f"vnetctl: {text}", file=sys.stderr)


def problem(item: Problem) -> dict[str, object]:
    return {
        "file": item.file,
        "line": item.line,
        "key": item.key,
        "wrong": item.wrong,
        "right": item.right,
    }


def record(item: Mapping[str, Any]) -> dict[str, object]:
    """A record of the bus as the history's JSON has it."""
    return {
        key: _cause(value) if key == "cause" else value
        for key, value in item.items()
        if key != "id"
    }


def signal(member: str, body: Sequence[Any]) -> dict[str, object]:
    match member, body:
        case "DriftDetected", (object_, drift, cause):
            return {"signal": member, "object": object_, "drift": drift, "cause": _cause(cause)}
        case "PolicyLoaded", (files, networks):
            return {"signal": member, "files": files, "networks": networks}
        case "PolicyRejected", (problems,):
            return {"signal": member, "problems": problems}
        case _:
            return {"signal": member, **record(body[1])}


def print_progress(job: Mapping[str, Any]) -> None:
    """To the terminal, not into what is printed."""
    if job.get("Step"):
        print(f"  {clean(job['Step'])}", file=sys.stderr, flush=True)


def print_status(
    manager: Mapping[str, Any],
    networks: Sequence[Mapping[str, Any]],
    bridges: Sequence[Mapping[str, Any]],
) -> None:
    """Bridges of networks that libvirt makes by itself go with their network."""
    parts = [manager["State"]]
    if manager["Mode"] == "observe":
        parts.append("observing only: vnetd reports and changes nothing")
    parts.append(f"libvirt {manager['Libvirt'] or 'not connected'}")
    if manager["Firewall"]:
        parts.append(manager["Firewall"])
    if manager["Guard"]:
        parts.append(f"guard: {manager['Guard']}")
    print(", ".join(parts))
    for reason in manager["Reasons"]:
        print(f"  {clean(reason)}")
    own = [x for x in bridges if x["Kept"] == "managed" and not _is_made_by_libvirt(x, networks)]
    if networks:
        print()
        _print_networks(networks)
    if own:
        print()
        _print_bridges(own)
    notes = [(item["Name"], *_notes(item)) for item in (*networks, *own) if any(_notes(item))]
    if notes:
        print()
    for name, *lines in notes:
        for line in lines[:_MOST_NOTES]:
            print(f"{clean(name)}: {clean(line)}")
        if len(lines) > _MOST_NOTES:
            print(f"{clean(name)}: and {len(lines) - _MOST_NOTES} more")


def _is_made_by_libvirt(bridge: Mapping[str, Any], networks: Sequence[Mapping[str, Any]]) -> bool:
    return any(x["Bridge"] == bridge["Name"] and x["Mode"] != "bridge" for x in networks)


def _print_bridges(bridges: Sequence[Mapping[str, Any]]) -> None:
    rows = [("BRIDGE", "STATE", "UP", "MAC", "MTU", "PORTS", "ADDRESSES")]
    rows += [
        (
            bridge["Name"],
            bridge["State"],
            _yes(bridge["Up"]),
            bridge["MAC"] or "-",
            str(bridge["MTU"] or "-"),
            " ".join(bridge["Ports"]) or "-",
            " ".join(bridge["Addresses"]) or "-",
        )
        for bridge in bridges
    ]
    _table(rows)


def _print_networks(networks: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        ("NETWORK", "STATE", "KEPT", "MODE", "BRIDGE", "ACTIVE", "AUTOSTART", "GUARD", "ADDRESSES")
    ]
    rows += [
        (
            network["Name"],
            network["State"],
            network["Kept"],
            network["Mode"],
            network["Bridge"] or "-",
            _yes(network["Active"]),
            _yes(network["Autostart"]),
            network["Guard"] or "-",
            " ".join(network["Addresses"]) or "-",
        )
        for network in networks
    ]
    _table(rows)


def print_network(network: Mapping[str, Any]) -> None:
    rows = [
        ("Network:", network["Name"]),
        ("State:", network["State"]),
        ("Kept:", network["Kept"]),
        ("Mode:", network["Mode"]),
        ("Bridge:", network["Bridge"] or "-"),
        ("Active:", _yes(network["Active"])),
        ("Autostart:", _yes(network["Autostart"])),
        ("Addresses:", " ".join(network["Addresses"]) or "-"),
        ("Guard:", network["Guard"] or "-"),
        ("UUID:", network["UUID"] or "-"),
    ]
    rows += [("On the router:", line) for line in network["Upstream"]]
    rows += [("Drift:", line) for line in network["Drift"]]
    rows += [("Reason:", line) for line in network["Reasons"]]
    _table(rows)


def print_plan(actions: Any, state: str) -> None:
    if not actions and state == "degraded":
        print("nothing that vnetd can do now; see what is wrong: vnetctl status")
    elif not actions:
        print("nothing to do: everything is as it must be")
    for number, action in enumerate(actions, 1):
        print(f"{number}. {clean(action['action'])}")
        print(f"   because: {clean(action['reason'])}")
        print(f"   running guests lose: {clean(action['impact'])}")


def print_answer(answer: Mapping[str, Any]) -> None:
    words = {"ok": "ok", "maybe": "maybe", "blocked": "BLOCKED"}
    for step in answer["steps"]:
        print(f"{words[step['word']]:8} {clean(step['at'])}: {clean(step['text'])}")
        if step["process"]:
            print(f"         made by: {clean(step['process'])}")
        if step["cure"]:
            print(f"         cure: {clean(step['cure'])}")
    print_probes(answer.get("probe", ()))


def print_probes(probes: Sequence[Mapping[str, Any]]) -> None:
    for probe in probes:
        word = "ok" if probe["answered"] else "BLOCKED"
        if probe["answered"]:
            end = "answered"
        elif probe["dropped"]:
            end = f"dropped by {probe['dropped']}: {probe['rule']}"
        elif probe["path"]:
            end = f"no answer; last seen in {probe['path'][-1]}, and dropped nowhere"
        else:
            end = "no answer; it never came up from the bridge"
        print(f"{word:8} probe: {clean(probe['question'])}: {clean(end)}")


def print_history(records: Sequence[Mapping[str, Any]]) -> None:
    if not records:
        print("nothing has been repaired yet")
        return
    for item in records:
        cause = f" by {_who(item['cause'])}" if item["cause"] else ""
        print(f"{_seconds(item['time'])}  {clean(item['object'])}  {_outcome(item)}")
        print(f"    broken{clean(cause)}: {clean(few(item['drift'], between='; '))}")
        for action in item["actions"]:
            print(f"    {clean(action)}")


def print_leases(leases: Sequence[Mapping[str, Any]]) -> None:
    if not leases:
        print("there are no leases")
        return
    rows = [("NETWORK", "ADDRESS", "MAC", "NAME", "EXPIRES")]
    for item in leases:
        expires = datetime.fromtimestamp(item["expires"], UTC).isoformat()
        name = item["name"] or "-"
        rows.append((item["network"], item["address"], item["mac"], name, _seconds(expires)))
    _table(rows)


def print_signal(member: str, body: Sequence[Any]) -> None:
    match member, body:
        case "DriftDetected", (object_, drift, cause):
            by = f" by {_who(cause)}" if cause else ""
            text = f"{object_}  broken{by}: {few(drift, between='; ')}"
        case "PolicyLoaded", (files, networks):
            text = f"policy  loaded: {networks} networks from {', '.join(files) or 'no file'}"
        case "PolicyRejected", (problems,):
            text = "policy  rejected: " + "; ".join(str(Problem(**item)) for item in problems)
        case _:
            item = body[1]
            text = f"{item['object']}  {_outcome(item)}: {'; '.join(item['actions'])}"
    print(clean(text), flush=True)


def clean(text: str) -> str:
    """Names come from others: nothing in them may reach the terminal as a control sequence."""
    return "".join(
        sign if sign == " " or unicodedata.category(sign)[0] not in "CZ" else f"\\x{ord(sign):02x}"
        for sign in text
    )


def _table(rows: Iterable[Sequence[str]]) -> None:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table(rows, columns):
        print(line)


def table(rows: Iterable[Sequence[str]], columns: int | None) -> Iterator[str]:
    """Lines of at most so many columns, as far as words allow: the last cell of a row goes on below
    itself, or below the whole row where it would have no room. None: however long.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    start = sum(widths[:-1]) + len(_GAP) * len(widths[:-1])
    longest = max((len(word) for row in cells for word in row[-1].split()), default=0)
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False))
        head, last = "".join(cell + _GAP for cell in padded), row[-1]
        if columns is None or start + len(last) <= columns:
            yield (head + last).rstrip()
        elif start + longest <= columns:
            yield from _wrapped(last, columns, head, " " * start)
        else:
            yield head.rstrip()
            yield from _wrapped(last, columns, _BELOW, _BELOW)


def _wrapped(text: str, columns: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _notes(network: Mapping[str, Any]) -> list[str]:
    return [*network["Reasons"], *network["Drift"]]


def _outcome(item: Mapping[str, Any]) -> str:
    return (
        f"{item['outcome']} in {item['ms']} ms"
        if item["outcome"] == "repaired"
        else str(item["outcome"])
    )


def _cause(cause: Mapping[str, Any]) -> dict[str, object] | None:
    return {"process": cause["process"], "pid": cause["pid"]} if cause else None


def _who(cause: Mapping[str, Any]) -> str:
    return " < ".join([f"{cause['process']}[{cause['pid']}]", *cause["parents"]])


def _seconds(time: str) -> str:
    return time[:19].replace("T", " ") + " UTC"


def _yes(value: object) -> str:
    return "yes" if value else "no"
