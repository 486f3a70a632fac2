"""./dev bench nat: what a flushed firewall costs guests and the host, with vnetd and without.

All contestants take turns in one box on one set of networks, so that whatever else the machine does
hits them alike. Raw figures are printed as they come; ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import by_hand
from tests.bench.report import Figure, document, summary
from tests.lab.hypervisor import WAN, Hypervisor, LabError

FLUSHES = (
    "iptables -t nat -F",
    "iptables -F; iptables -X; iptables -t nat -F; iptables -t nat -X",
    "nft flush ruleset",
)
# Not by iptables -D: a lone change may be libvirt at work, so vnetd waits 0.3 s for the next one.
ONE_RULE = """iptables-restore --noflush <<'EOF'
*nat
-D LIBVIRT_PRT -s 10.100.0.0/24 ! -d 10.100.0.0/24 -j MASQUERADE
COMMIT
EOF
"""
# libvirtd needs about half a second for each network, and longer the more there are.
_LONGEST_SECONDS = 900.0
# What a guest waits at most for whoever is to heal: not to be back by then is a figure as well.
_BACK_SECONDS = 300.0
# conntrack remembers flows that went out untranslated: a new one from the same address and port is
# lost whoever heals. A short memory, waited for at the end, keeps this out of the figures.
_CONNTRACK_SECONDS = 1
_NETWORKS = "1:5,10:5,50:3,200:1"


@dataclass(frozen=True)
class Contestant:
    """policy: a line for each network's section; None: vnetd does not run.

    damage: what is done in place of the flush. heal: what the admin then does.
    """

    name: str
    policy: str | None = None
    damage: str = ""
    firewalld: bool = False
    heal: Callable[[Hypervisor], None] = lambda _: None


def restart_libvirtd(box: Hypervisor) -> None:
    """As systemctl restart does; with many networks it does not answer for minutes."""
    box.kill("libvirtd")
    box.spawn("libvirtd", "libvirtd")


GUARDED = Contestant("vnetd, guard", "guard = true")
VNETD = Contestant("vnetd", "guard = false")
LIBVIRTD = Contestant("libvirtd restart", heal=restart_libvirtd)
FIREWALLD = Contestant("firewalld reload", damage="firewall-cmd --reload", firewalld=True)


def outage_after(damage: str) -> str:
    return f"outage after {damage}"


def repair_after(damage: str) -> str:
    return f"repair after {damage}"


REPAIR_OF_ONE = "repair of one rule"
CASES = (
    *map(outage_after, (*FLUSHES, FIREWALLD.damage)),
    *map(repair_after, FLUSHES[::2]),
    REPAIR_OF_ONE,
)


class Bench:
    def __init__(self, box: Hypervisor, networks: int, trials: int, only: str) -> None:
        self.figures: list[Figure] = []
        self._box = box
        self._networks = networks
        self._trials = trials
        self._only = only
        self._knows_guard = True
        self._running = ""
        box.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_udp_timeout={_CONNTRACK_SECONDS}")
        self._make_networks()
        self._guest = box.guest("vb0", "10.100.0.50/24", gateway="10.100.0.1")
        self._good = self._rules()

    def run(self) -> None:
        contestants = self._contestants()
        for flush in FLUSHES:
            self._compare(flush, [c for c in contestants if not c.firewalld])
        if FIREWALLD in contestants and self._only in outage_after(FIREWALLD.damage):
            with self._firewalld():
                self._compare(FIREWALLD.damage, [c for c in contestants if c is not LIBVIRTD])
        for flush in FLUSHES[::2]:
            self._repairs(repair_after(flush), flush, records=self._networks)
        self._repairs(REPAIR_OF_ONE, ONE_RULE, records=1)

    def _contestants(self) -> list[Contestant]:
        found = [VNETD, LIBVIRTD]
        self._box.write("/run/box/policy.toml", self._policy(GUARDED))
        said = self._box.vnetctl("check", "/run/box/policy.toml")
        self._knows_guard = said.returncode == 0
        if self._knows_guard:
            found.insert(0, GUARDED)
        else:
            why = (said.stdout + said.stderr).splitlines()[0]
            print(f"skipped: {GUARDED.name}: {why}")
        if shutil.which("firewalld"):
            found.append(FIREWALLD)
        else:
            print(f"skipped: {FIREWALLD.name}: firewalld is not installed")
        return found

    # -- what a guest feels

    def _compare(self, damage: str, contestants: Iterable[Contestant]) -> None:
        case = outage_after(damage)
        if self._only not in case:
            return
        for trial in range(self._trials):
            for contestant in contestants:
                self._stand(contestant)
                since = time.monotonic()
                with self._box.probing(self._guest) as outage:
                    self._box.attempt("sh", "-c", damage)
                    contestant.heal(self._box)
                    # The guest first: reading rules in a loop would slow down who restores them.
                    back = self._comes(lambda: self._box.pings(self._guest, WAN), _BACK_SECONDS)
                    waited = time.monotonic() - since
                    self._comes(lambda: self._rules() == self._good, _LONGEST_SECONDS)
                    time.sleep(1.5 * _CONNTRACK_SECONDS)
                back = back and not outage.still_out
                self._tell(
                    Figure(
                        self._networks,
                        case,
                        contestant.name,
                        trial,
                        outage.ms if back else 1000 * waited,
                        lost=outage.lost,
                        sent=outage.sent,
                        back=back,
                    )
                )

    def _comes(self, holds: Callable[[], bool], seconds: float) -> bool:
        try:
            self._box.wait_until(holds, seconds=seconds)
        except LabError:
            return False
        return True

    # -- what it costs the host

    def _repairs(self, case: str, damage: str, records: int) -> None:
        """vnetd, from its first notice to verified, and the same rules put back by hand."""
        if self._only not in case:
            return
        self._stand(VNETD)
        self._stop_vnetd()
        restore = by_hand.restore(self._box, damage)
        for trial in range(self._trials):
            self._stand(VNETD)
            cpu, said = self._vnetd_cpu(), len(self._box.log("vnetd"))
            self._box.sh(damage)
            times = self._repair_times(said, records)
            spent = self._vnetd_cpu() - cpu
            self._tell(Figure(self._networks, case, VNETD.name, trial, max(times), spent))

            self._stop_vnetd()
            at_once = by_hand.between(self._box, f"{damage}\n{restore}")
            self._tell(Figure(self._networks, case, "by hand", trial, at_once))
            self._box.sh(damage)
            later = by_hand.timed(self._box, restore)
            self._tell(Figure(self._networks, case, "by hand, later", trial, *later))
            if self._rules() != self._good:
                raise LabError(f"restoring by hand left other rules than there were: {case}")
            reading = by_hand.timed(self._box, "iptables-save; ip6tables-save")
            self._tell(Figure(self._networks, case, "reading", trial, *reading))

    def _repair_times(self, said: int, records: int) -> list[float]:
        """What vnetd logs, one line for each network, as soon as it does no more."""
        times: list[float] = []

        def complete() -> bool:
            found = re.findall(r"repaired in (\d+) ms", self._box.log("vnetd")[said:])
            times[:] = map(float, found)
            return len(times) == records

        self._wait(complete)
        # Answered when what belongs to the pass is over.
        ping = ("org.vnetd1", "/org/vnetd1", "org.freedesktop.DBus.Peer", "Ping")
        self._box.run("busctl", "--system", "call", *ping)
        return times

    def _vnetd_cpu(self) -> float:
        """Its own and its ended children's, in ms; the kernel rounds to 10."""
        stat = self._box.run("cat", f"/proc/{self._box.pid('vnetd')}/stat")
        ticks = sum(map(int, stat.rpartition(")")[2].split()[11:15]))
        return 1000 * ticks / os.sysconf("SC_CLK_TCK")

    # -- the box

    def _make_networks(self) -> None:
        began = time.monotonic()
        for start in range(0, self._networks, 10):
            numbers = range(start, min(start + 10, self._networks))
            script = "".join(
                f"virsh -q net-define /dev/stdin <<'EOF'\n{_network_xml(number)}EOF\n"
                f"virsh -q net-autostart n{number}\nvirsh -q net-start n{number}\n"
                for number in numbers
            )
            self._box.run("sh", "-e", stdin=script)
            made = f"{numbers[-1] + 1} of {self._networks} networks"
            print(f"{made}, {time.monotonic() - began:.0f} s", flush=True)

    def _stand(self, contestant: Contestant) -> None:
        """Everything as it must be, and this contestant alone on watch."""
        if contestant.policy is None:
            self._stop_vnetd()
        elif self._running != contestant.policy:
            self._stop_vnetd()
            policy = self._policy(contestant)
            self._box.write("/etc/vnetd/vnetd.toml", policy)
            self._box.spawn_vnetd()
            self._wait(lambda: self._box.state() == "converged")
            self._box.vnetctl("reconcile")  # what it does after its start is over
            self._running = contestant.policy
        self._wait(lambda: self._rules() == self._good)

    def _stop_vnetd(self) -> None:
        if self._running:
            self._box.kill("vnetd")
            # A guard outlives its vnetd.
            self._box.attempt("nft", "delete", "table", "inet", "vnetd")
            self._running = ""

    def _policy(self, contestant: Contestant) -> str:
        line = contestant.policy if self._knows_guard else ""
        return "\n".join(
            f'[networks.n{number}]\nmode = "nat"\nbridge = "vb{number}"\nstp = false\n'
            f'addresses = ["{_subnet(number)}.1/24"]\n'
            f"{line}\n"
            for number in range(self._networks)
        )

    @contextmanager
    def _firewalld(self) -> Iterator[None]:
        """Its start and its end flush libvirt's rules; libvirtd heals after the start only."""
        self._box.start_polkit()  # it lets vnetd set zones
        self._box.start_firewalld()
        self._wait(lambda: self._rules() == self._good)
        try:
            yield
        finally:
            self._box.kill("firewalld")
            restart_libvirtd(self._box)
            self._wait(lambda: self._rules() == self._good)

    def _rules(self) -> list[str]:
        """Whatever the order of the networks, which a restart of libvirtd changes."""
        return sorted(line for line in self._box.rules().splitlines() if line[:3] == "-A ")

    def _wait(self, holds: Callable[[], bool]) -> None:
        self._box.wait_until(holds, seconds=_LONGEST_SECONDS)

    def _tell(self, figure: Figure) -> None:
        self.figures.append(figure)
        more = f", {figure.cpu_ms:.0f} ms CPU" if figure.cpu_ms is not None else ""
        more += f", lost {figure.lost} of {figure.sent} flows" if figure.lost is not None else ""
        more += "" if figure.back else ": not back"
        print(
            f"  {figure.networks:3} networks, {figure.case}: {figure.contestant}: "
            f"{figure.ms:.1f} ms{more}",
            flush=True,
        )


def _subnet(number: int) -> str:
    return f"10.{100 + number // 256}.{number % 256}"


def _network_xml(number: int) -> str:
    """Without dnsmasq: by default a Linux host has inotify for 128 of them."""
    return (
        f"<network><name>n{number}</name><forward mode='nat'/>"
        f"<bridge name='vb{number}' stp='off' delay='0'/><dns enable='no'/>"
        f"<ip address='{_subnet(number)}.1' netmask='255.255.255.0'/></network>\n"
    )


def header(box: Hypervisor) -> dict[str, str]:
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{system}, Linux {platform.release()}, {os.cpu_count()} CPUs",
        "libvirt": box.run("libvirtd", "--version").split()[-1],
        "iptables": box.run("iptables", "--version").strip(),
        "vnetd": box.run(box.tool("vnetd"), "--version").split()[-1],
        "commit": _commit(),
        "load": f"{os.getloadavg()[0]:.1f} in the minute before, of everything else on the machine",
        "outage": "of a guest, a namespace behind a veth, which opens a UDP flow to the wan host "
        "every 2 ms: the longest gap from one that fails to the next that works",
        "repair": "from vnetd's first notice until it has read the rules again, and all are right",
        "by hand": "by a script that does the damage, then what is gone by one iptables-restore "
        "--noflush for each family that lacks any: from the kernel's word of the damage, as vnetd "
        "gets it, to that of the last rules; vnetd does not run",
        "by hand, later": "that iptables-restore alone, when the kernel has cleared up behind the "
        "damage: before that it lets nobody add rules like MASQUERADE or REJECT",
        "reading": "one iptables-save and one ip6tables-save",
    }


def _commit() -> str:
    git = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench nat", description=__doc__)
    parser.add_argument(
        "--networks",
        default=_NETWORKS,
        metavar="NUMBER[:TRIALS],...",
        help=f"numbers of networks, one run each (default: {_NETWORKS})",
    )
    parser.add_argument(
        "--trials", type=int, default=5, help="of each contestant in each case, if not said there"
    )
    parser.add_argument(
        "--only", default="", metavar="WORD", help="cases whose name has this word: outage, repair"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="raw figures, and what was measured"
    )
    parser.add_argument(
        "--document", type=Path, metavar="FILE", help="the whole run as a Markdown table"
    )
    parser.add_argument(
        "--from",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        dest="kept",
        help="run nothing: the document is of the raw figures that --json kept",
    )
    arguments = parser.parse_args()
    if arguments.kept:
        if arguments.document is None:
            parser.error("--from wants a --document")
        runs = [json.loads(kept.read_text()) for kept in arguments.kept]
        of_runs = [Figure(**figure) for run in runs for figure in run["figures"]]
        _write(arguments.document, [run["measured"] for run in runs], of_runs)
        return 0
    if not any(arguments.only in case for case in CASES):
        parser.error(f"no case has this word in its name: {arguments.only}")
    figures: list[Figure] = []
    told: dict[str, str] = {}
    for size in arguments.networks.split(","):
        networks, _, trials = size.partition(":")
        with Hypervisor() as box:
            if not told:
                told = header(box)
                print("\n".join(f"{key}: {value}" for key, value in told.items()))
            bench = Bench(box, int(networks), int(trials or arguments.trials), arguments.only)
            try:
                bench.run()
            except LabError:
                print(box.log("vnetd")[-5000:], file=sys.stderr)
                raise
            finally:
                figures += bench.figures
    print("\nMedian of the trials (least to most), and how many times another's median it is\n")
    print("\n".join(summary(figures)))
    if arguments.json:
        data = {"measured": told, "figures": [asdict(figure) for figure in figures]}
        arguments.json.write_text(json.dumps(data, indent=1) + "\n")
    if arguments.document:
        _write(arguments.document, [told], figures)
    return 0


def _write(path: Path, told: Sequence[Mapping[str, str]], figures: Sequence[Figure]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(document(told, figures)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
