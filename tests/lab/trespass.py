"""Who must not get through, and tries all the time: a host outside that knows the ways to guests of
NAT and isolated networks, and guests of isolated networks that want out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tests.lab.hypervisor import UPLINK, WAN, Hypervisor
from tests.lab.machine import UPLINK_IPV6, WAN_IPV6
from tests.lab.probe import Outage

_STEP_SECONDS = 0.05


def open_guest(box: Hypervisor, bridge: str, ipv4: str, ipv6: str = "", host: str = "50") -> str:
    """One that answers, and to which the wan knows the way. ipv4, ipv6: what comes before the
    host's part, of a /24 and of a /64. A bridge with STP on forwards what it says 4 s later.
    """
    name = box.guest(bridge, f"{ipv4}.{host}/24")
    box.run("ip", "-n", name, "route", "add", "default", "via", f"{ipv4}.1")
    box.run("ip", "-n", "wan", "route", "replace", f"{ipv4}.0/24", "via", UPLINK)
    if ipv6:
        box.run("ip", "-n", name, "addr", "add", f"{ipv6}{host}/64", "dev", "eth0", "nodad")
        box.run("ip", "-n", name, "-6", "route", "add", "default", "via", f"{ipv6}1")
        box.run("ip", "-n", "wan", "-6", "route", "replace", f"{ipv6}/64", "via", UPLINK_IPV6)
    box.answer_in(name)
    return name


@contextlib.contextmanager
def trespassing(
    box: Hypervisor, inwards: Sequence[str], outwards: Sequence[str]
) -> Iterator[list[Outage]]:
    """Raises AssertionError at the end where one got an answer.

    inwards: guests' addresses. outwards: guests of isolated networks.
    """
    ways = [("wan", to) for to in inwards]
    ways += [(guest, to) for guest in outwards for to in (WAN, WAN_IPV6)]
    with contextlib.ExitStack() as probes:
        attempts = [
            probes.enter_context(box.probing(source, to, in_vain=True, step=_STEP_SECONDS))
            for source, to in ways
        ]
        yield attempts
    tried = sum(attempt.sent for attempt in attempts)
    through = [
        (way, attempt)
        for way, attempt in zip(ways, attempts, strict=True)
        if attempt.lost != attempt.sent
    ]
    print(f"let through: {sum(a.sent - a.lost for _, a in through)} of {tried}")
    assert all(attempt.sent for attempt in attempts)
    assert not through, through
