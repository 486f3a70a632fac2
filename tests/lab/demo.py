"""./dev demo: vnetd's main job on real parts, told as it happens. Exit 0 only if all of it did."""

from __future__ import annotations

import argparse
import sys
import time

from tests.lab.hypervisor import UPLINK, Hypervisor, LabError
from tests.lab.shell import open_shell_hint, wait_for_end

POLICY = """\
[networks.lab]                  # guests reach the outside behind the host's address
mode = "nat"
bridge = "vblab"
stp = false
addresses = ["10.77.0.1/24", "fd77::1/64"]
dhcp.ranges = ["10.77.0.10-10.77.0.99"]

[networks.routed]               # guests have addresses that others can route to
mode = "route"
bridge = "vbrouted"
addresses = ["10.78.0.1/24"]

[networks.quiet]                # guests reach each other and the host only
mode = "isolated"
bridge = "vbquiet"
addresses = ["10.79.0.1/24"]

[networks.lan]                  # guests sit on a bridge of the host
mode = "bridge"
bridge = "br0"
"""

# What is run, and what a guest would have of it without vnetd.
DAMAGE = {
    "iptables -t nat -F": "guests' packets leave with addresses that nobody can answer",
    "iptables -F; iptables -X": "anybody outside reaches the guests, and isolated ones get out",
    "nft flush ruleset": "both, and libvirt cannot start a network any more",
    "virsh net-destroy lab": "guests' taps hang in the air, until libvirtd is restarted",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument(
        "--keep", action="store_true", help="leave it up, and say how to step inside"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    with Hypervisor() as box:
        try:
            show(box, began)
        except (LabError, AssertionError) as error:
            print(f"\nThe demo failed: {error}\n\nvnetd said:\n{box.log('vnetd')}", file=sys.stderr)
            return 1
        if arguments.keep:
            open_shell_hint(box)
            wait_for_end()
    return 0


def show(box: Hypervisor, began: float) -> None:
    say(f"A hypervisor in a box: libvirtd, a bus, an uplink ({time.monotonic() - began:.1f} s).")
    box.sh("ip link add br0 type bridge; ip link set br0 up")
    run(box, "virsh net-list --all")
    say("A policy for it, and vnetd:")
    quote(POLICY)
    box.start_vnetd(POLICY)
    expect(box.state() == "converged", "vnetd converged")
    run(box, "vnetctl status")

    say("A guest: a libvirt domain with a real tap, on the network lab.")
    guest = box.domain_guest("lab", "10.77.0.50/24", gateway="10.77.0.1")
    with box.probing(guest) as outage:
        box.wait_until(lambda: box.pings(guest, "198.51.100.2"))
    expect(outage.sources == [UPLINK], "the wan host saw the guest behind the uplink's address")
    say(f"It reaches the wan host, which sees it come from {UPLINK}: NAT works.")

    for script, otherwise in DAMAGE.items():
        say(f"Somebody runs:  {script}")
        print(f"  otherwise: {otherwise}")
        break_it(box, guest, script)

    say("The same from the bus, for any client:")
    run(box, "busctl --system --list tree org.vnetd1")
    path = "/org/vnetd1/network/lab"
    run(box, f"busctl --system get-property org.vnetd1 {path} org.vnetd1.Network State")
    say("And all of it in the history:")
    run(box, "vnetctl history -n 2")
    expect(box.state() == "converged", "vnetd ends converged")
    say(f"All of this happened on real parts, in {time.monotonic() - began:.0f} s.")


def break_it(box: Hypervisor, guest: str, script: str) -> None:
    """Break it under a guest that opens a new connection every 2 ms."""
    good, known = box.sorted_rules(), len(box.history())
    with box.probing(guest) as outage:
        # -X may find the chains in use again already
        box.attempt("sh", "-c", script)
        box.wait_until(lambda: len(box.history()) > known, what="a record of it")
        box.wait_until(lambda: box.state() == "converged", what="converged again")
        box.wait_until(lambda: box.pings(guest, "198.51.100.2"), what="the guest out again")
    records = [item for item in box.history()[known:] if item["object"] == "network/lab"]
    expect(bool(records), "the history tells of it")
    for record in records:
        drift = record["drift"]
        more = f" … and {len(drift) - 3} more" if len(drift) > 3 else ""
        cause = record["cause"]
        print(f"  broken:    {'; '.join(drift[:3])}{more}")
        print(f"  by:        {cause['process']} (pid {cause['pid']})" if cause else "  by: unknown")
        print(f"  repaired:  {'; '.join(record['actions'])}, {record['ms']} ms after the notice")
        expect(record["outcome"] == "repaired", "it was repaired")
        expect(cause is not None, "its culprit was named")
    print(
        f"  guest:     {outage.lost} of {outage.sent} new connections failed, "
        f"the longest gap was {outage.ms:.0f} ms"
    )
    expect(not outage.still_out, "the guest is out again")
    expect(outage.sources == [UPLINK], "behind the uplink's address as before")
    expect(box.sorted_rules() == good, "the rules are libvirt's own again")


def say(text: str) -> None:
    print(f"\n── {text}", flush=True)


def quote(text: str) -> None:
    for line in text.splitlines():
        print(f"  {line}".rstrip())


def run(box: Hypervisor, command: str) -> None:
    words = command.split()
    if words[0] == "vnetctl":
        words[0] = box.tool("vnetctl")
    print(f"  # {command}")
    quote(box.run(*words))


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise LabError(f"this did not hold: {what}")


if __name__ == "__main__":
    sys.exit(main())
