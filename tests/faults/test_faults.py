"""Each fault of the catalogue, under a guest that opens new flows all the time.

Afterwards rules, links, routes and libvirt's record are what they were, whatever vnetd itself says
of them, and guest, libvirtd and vnetd are the same processes.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.catalogue import CATALOGUE
from tests.faults.fault import Fault, Outcome, Step
from tests.faults.host import Host, Hosts, System
from tests.lab.hypervisor import CACHE, WAN, LabError
from tests.long import LONG

ROWS = CACHE / "faults"
_MOST_MIB = 150

_KINDS = list(dict.fromkeys(fault.host for fault in CATALOGUE))
# Those that share a host one after the other.
_FAULTS = [
    (system, fault)
    for system in (System if LONG else [System.BOOKWORM])
    for fault in sorted(CATALOGUE, key=lambda fault: _KINDS.index(fault.host))
    if system in fault.systems and (LONG or not fault.long)
]


@pytest.fixture(scope="module")
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with Hosts(request.param) as found:
        yield found


@pytest.mark.parametrize(
    ("hosts", "fault"),
    [
        pytest.param(
            system, fault, id=f"{fault.id}-{system}", marks=pytest.mark.timeout(fault.seconds)
        )
        for system, fault in _FAULTS
    ],
    indirect=["hosts"],
    scope="module",
)
def test_fault(hosts: Hosts, fault: Fault) -> None:
    with hosts.host(fault.host) as host:
        _play(host, fault)


def _play(host: Host, fault: Fault) -> None:
    box = host.box
    if box.canary is not None:
        box.canary.perch()
    before, processes, records = host.facts(), host.processes(), len(box.history())
    used, told_ms, said = host.usage(), None, len(box.log("vnetd"))
    with box.pinging() as answers, box.probing(host.guest) as outage:
        _do(host, fault.inject)
        if fault.outcome is Outcome.NAMED:
            since = time.monotonic()
            box.wait_until(lambda: fault.told in host.said(), seconds=30, what="it is told")
            told_ms = round((time.monotonic() - since) * 1000)
        _do(host, fault.undo)
        if fault.outcome is Outcome.HEALED and not fault.heals_itself:
            box.wait_until(
                lambda: bool(_repaired(box.history()[records:])), seconds=60, what="a record of it"
            )
        _wait_until_as(host, before)
        out = "the guest gets out"
        box.wait_until(lambda: box.pings(host.guest, WAN), seconds=60, what=out)
    assert not outage.still_out
    now = host.usage()
    assert now.mib < _MOST_MIB
    # A full pass: whatever there is to be said of it has been said by then.
    assert box.vnetctl("reconcile").returncode == 0
    new = box.history()[records:]
    repaired = _repaired(new)
    if fault.outcome in (Outcome.UNTOUCHED, Outcome.REFUSED):
        assert not new
    after = host.processes()
    assert {name for name in after if after[name] != processes[name]} <= set(fault.restarts)
    _, traceback, text = box.log("vnetd")[said:].partition("Traceback")
    assert not traceback, text[:2000]
    if fault.check is not None:
        fault.check(host)
    if box.canary is not None:
        box.canary.check()
    _write(
        host,
        fault,
        told_ms=told_ms,
        healed_ms=max((int(record["ms"]) for record in repaired), default=None),
        incidents=max(Counter(record["object"] for record in new).values(), default=0),
        lost=outage.lost,
        sent=outage.sent,
        gap_ms=round(outage.ms),
        cpu_ms=now.cpu_ms - used.cpu_ms,
        files=now.files - used.files,
        mib=now.mib,
        answer_ms=round(answers[0]),
    )


def _repaired(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["outcome"] == "repaired"]


def _wait_until_as(host: Host, before: dict[str, object]) -> None:
    after: dict[str, object] = {}

    def holds() -> bool:
        nonlocal after
        after = host.facts()
        return after == before and host.box.state() == "converged"

    try:
        host.box.wait_until(holds, seconds=60)
    except LabError as error:
        changed = {key: (before[key], after[key]) for key in before if after[key] != before[key]}
        raise LabError(f"not as it was: {changed}; vnetd says: {host.said()}") from error


def _do(host: Host, step: Step) -> None:
    if callable(step):
        step(host)
    else:
        host.run(step)


def _write(host: Host, fault: Fault, **figures: int | None) -> None:
    ROWS.mkdir(exist_ok=True)
    row = {
        "id": fault.id,
        "what": fault.what,
        "system": f"{host.system}, libvirt {host.libvirt}",
        "outcome": fault.outcome,
        "load": os.getloadavg()[0],
        **figures,
    }
    path: Path = ROWS / f"{host.system.replace(' ', '-')}-{fault.id}.json"
    path.write_text(json.dumps(row))
