"""What a run of a bench has measured, for people: lines for a terminal, and a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    networks: int
    case: str
    contestant: str
    trial: int
    ms: float
    cpu_ms: float | None = None
    lost: int | None = None
    sent: int | None = None
    back: bool = True
    """False: that long after it the guest was still out."""


def summary(figures: Iterable[Figure]) -> Iterator[str]:
    """A line for each contestant: median, least and most, and its ratios to the others."""
    for (networks, case), contestants in _by_case(figures).items():
        yield f"{networks} networks, {case}"
        middle = {name: median(f.ms for f in found) for name, found in contestants.items()}
        for name, found in contestants.items():
            times = sorted(found, key=lambda figure: figure.ms)
            line = f"  {name:16} {middle[name]:9.1f} ms  ({_ms(times[0])} to {_ms(times[-1])})"
            cpu = [figure.cpu_ms for figure in found if figure.cpu_ms is not None]
            line += f"  {sum(cpu) / len(cpu):7.0f} ms CPU" if cpu else ""
            others = [
                f"{middle[name] / other:.3g} x {against}"
                for against, other in middle.items()
                if against != name and other
            ]
            yield line + (f"  = {', '.join(others)}" if others else "")


def document(told: Sequence[Mapping[str, str]], figures: Sequence[Figure]) -> Iterator[str]:
    """In Markdown: medians and ratios, every figure, and the targets that are missed."""
    cases = _by_case(figures)
    yield "# What a flushed firewall costs\n"
    yield "Written by `./dev bench nat --document`, not by hand.\n"
    for key in told[0]:
        values = dict.fromkeys(run.get(key, "") for run in told)  # of several runs
        yield f"- {key}: {'; '.join(values)}"
    yield "\n| networks | case | contestant | median, ms | times the others' | all, ms |"
    yield "|--:|---|---|--:|---|---|"
    verdicts: list[str] = []
    for (networks, case), contestants in cases.items():
        middle = {name: median(f.ms for f in found) for name, found in contestants.items()}
        for name, found in contestants.items():
            others = [(other, ms) for other, ms in middle.items() if other != name and ms]
            ratios = ", ".join(f"{middle[name] / ms:.3g} × {other}" for other, ms in others)
            raw = ", ".join(_ms(figure) for figure in found)
            yield f"| {networks} | `{case}` | {name} | {middle[name]:.1f} | {ratios} | {raw} |"
        verdicts += _verdicts(networks, case, middle)
    yield "\n## Targets\n"
    yield from verdicts


def _by_case(figures: Iterable[Figure]) -> dict[tuple[int, str], dict[str, list[Figure]]]:
    cases: dict[tuple[int, str], dict[str, list[Figure]]] = {}
    for figure in figures:
        of_case = cases.setdefault((figure.networks, figure.case), {})
        of_case.setdefault(figure.contestant, []).append(figure)
    return cases


def _ms(figure: Figure) -> str:
    return f"{figure.ms:.1f}" if figure.back else f"not back within {figure.ms / 1000:.0f} s"


def _verdicts(networks: int, case: str, middle: Mapping[str, float]) -> Iterator[str]:
    for against, most in _targets(networks, case):
        if "vnetd" not in middle or not all(middle.get(name) for name in against):
            continue
        ratio = middle["vnetd"] / sum(middle[name] for name in against)
        verdict = "reached" if ratio <= most else "**missed**"
        said = f"{ratio:.3g} × {' + '.join(against)}, at most {most:.3g} wanted"
        yield f"- {networks} networks, `{case}`: {said}: {verdict}"


def _targets(networks: int, case: str) -> Iterator[tuple[tuple[str, ...], float]]:
    """What vnetd without its guard is to be compared with, and how many times that it may take."""
    if case.startswith("outage after") and "firewall-cmd" not in case:
        yield ("libvirtd restart",), 1 / 50 if networks >= 50 else 1 / 10
    elif case == "repair of one rule":
        if networks >= 200:
            yield ("by hand, later", "reading"), 1.0
    elif case.startswith("repair") and networks >= 50:
        yield ("by hand",), 2.0
        yield ("by hand, later",), 2.0
