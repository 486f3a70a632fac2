"""What monitoring counts, as text: OpenMetrics, or the older format that node_exporter reads.

The counters begin at 0 with each start of vnetd, as monitoring expects of counters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vnetd import __version__
from vnetd.core.model import Cause, Source, State
from vnetd.core.record import Outcome, Record
from vnetd.core.status import Status
from vnetd.core.wording import printable

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Anybody can give a process any name.
_MOST_PROCESSES = 50
_MANY, _UNKNOWN = "other", "unknown"


class Format(StrEnum):
    """The OpenMetrics specification, and Prometheus' "text-based format" before it."""

    OPENMETRICS = "openmetrics"
    PROMETHEUS = "prometheus"


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """samples: what is behind the name, labels, value."""

    name: str
    kind: Kind
    help: str
    samples: tuple[tuple[str, Labels, float], ...]


@dataclass(slots=True)
class Counts:
    """Of this run of vnetd. by source: a repair that worked on several counts for each of them."""

    repairs: Counter[Source] = field(default_factory=Counter)
    failures: Counter[Source] = field(default_factory=Counter)
    conflicts: int = 0
    drift: Counter[str] = field(default_factory=Counter)
    """By the process that caused it."""
    seconds: list[float] = field(default_factory=lambda: [0.0] * (len(_BUCKETS) + 1))
    """Repairs by the first bucket that they fit in; those that fit in none last."""
    seconds_sum: float = 0.0

    def drifted(self, cause: Cause | None) -> None:
        process = printable(cause.process) if cause else _UNKNOWN
        if process not in self.drift and len(self.drift) >= _MOST_PROCESSES:
            process = _MANY
        self.drift[process] += 1

    def recorded(self, record: Record) -> None:
        match record.outcome:
            case Outcome.REPAIRED:
                self.repairs.update(record.sources)
                took = record.ms / 1000
                first = next((i for i, most in enumerate(_BUCKETS) if took <= most), len(_BUCKETS))
                self.seconds[first] += 1
                self.seconds_sum += took
            case Outcome.FAILED:
                self.failures.update(record.sources)
            case Outcome.CONFLICT:
                self.conflicts += 1


def render(families: Iterable[Family], form: Format) -> str:
    lines: list[str] = []
    open_ = form is Format.OPENMETRICS
    for family in families:
        # Only OpenMetrics leaves _total out of a counter's name.
        suffix = "" if open_ or family.kind is not Kind.COUNTER else "_total"
        lines.append(f"# TYPE {family.name}{suffix} {family.kind}")
        lines.append(f"# HELP {family.name}{suffix} {family.help}")
        for behind, labels, value in family.samples:
            total = "_total" if family.kind is Kind.COUNTER else behind
            lines.append(f"{family.name}{total}{_labels(labels)} {_number(value)}")
    return "\n".join([*lines, *(["# EOF"] if open_ else []), ""])


def families(counts: Counts, status: Status | None, *, passes: int) -> Iterator[Family]:
    """status: None before the first pass."""
    yield _counter("passes", "Passes: looks at what has changed, or at everything.", passes)
    yield _by_source("repairs", "Repairs, by what they worked on.", counts.repairs)
    yield _by_source("repair_failures", "Repairs that failed, likewise.", counts.failures)
    yield _counter("conflicts", "Conflicts with what is not vnetd's.", counts.conflicts)
    drift = tuple(("", {"process": name}, n) for name, n in sorted(counts.drift.items()))
    help_ = "Objects that were found not to be as they must be, by the process that did it."
    yield Family("vnetd_drift", Kind.COUNTER, help_, drift)
    yield Family(
        "vnetd_repair_seconds",
        Kind.HISTOGRAM,
        "Time from the first notice of drift until its repair was verified.",
        tuple(_histogram(counts)),
    )
    if status is not None:
        yield from _of_status(status)


def _of_status(status: Status) -> Iterator[Family]:
    about = {"version": __version__, "libvirt": status.libvirt, "firewall": status.firewall}
    yield _gauge("build_info", "What runs here.", [("", about, 1)])
    help_ = "1 for the state that all of it is in, 0 for the others."
    yield _gauge("state", help_, list(_states({}, status.state)))
    networks = status.networks.values()
    of_networks = [s for n in networks for s in _states({"network": printable(n.name)}, n.state)]
    yield _gauge("network_state", "The same of each network.", of_networks)
    bridges = status.bridges.values()
    of_bridges = [s for b in bridges for s in _states({"bridge": printable(b.name)}, b.state)]
    yield _gauge("bridge_state", "The same of each bridge of the host.", of_bridges)
    active = [("", {"network": printable(n.name)}, float(n.active)) for n in networks]
    yield _gauge("network_active", "Whether libvirt runs it.", active)
    guarded = [("", {"network": printable(n.name)}, float(n.guard == "on")) for n in networks]
    yield _gauge("network_guarded", "Whether vnetd's guard stands behind it.", guarded)


def _states(labels: Labels, now: State) -> Iterator[tuple[str, Labels, float]]:
    for state in State:
        yield "", {**labels, "state": state.value}, float(state is now)


def _histogram(counts: Counts) -> Iterator[tuple[str, Labels, float]]:
    so_far = 0.0
    for most, count in zip((*(str(b) for b in _BUCKETS), "+Inf"), counts.seconds, strict=True):
        so_far += count
        yield "_bucket", {"le": most}, so_far
    yield "_sum", {}, counts.seconds_sum
    yield "_count", {}, so_far


def _counter(name: str, help_: str, value: float) -> Family:
    return Family(f"vnetd_{name}", Kind.COUNTER, help_, (("", {}, value),))


def _by_source(name: str, help_: str, counts: Mapping[Source, int]) -> Family:
    """All of them from the start: a counter that appears with 1 has no increase."""
    samples = tuple(
        ("", {"source": source.value}, float(counts.get(source, 0))) for source in Source
    )
    return Family(f"vnetd_{name}", Kind.COUNTER, help_, samples)


def _gauge(name: str, help_: str, samples: Sequence[tuple[str, Labels, float]]) -> Family:
    return Family(f"vnetd_{name}", Kind.GAUGE, help_, tuple(samples))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
