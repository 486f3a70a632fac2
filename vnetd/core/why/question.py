"""What is asked of a guest's way, what must be known to answer, and the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address

from vnetd.core.model import Definition, Family, HostAddress, IfName, Observed
from vnetd.errors import NoSuchNetwork, VnetdError

_MOST_TRIED = 1024


class Word(StrEnum):
    OK = "ok"
    MAYBE = "maybe"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """at: the part of the way. hook to process: of a firewall's verdict."""

    at: str
    word: Word = Word.OK
    text: str
    cure: str = ""
    hook: str = ""
    table: str = ""
    chain: str = ""
    rule: str = ""
    process: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """guest: None asks for any guest of the network. destination: None is the default gateway."""

    network: str
    live: Definition | None
    guest: str | None
    destination: HostAddress | None

    @property
    def family(self) -> Family:
        if self.destination is not None:
            return Family.of(self.destination)
        addresses = self.live.addresses if self.live else ()
        families = [Family.of(address) for address in addresses]
        return Family.IPV6 if families and Family.IPV4 not in families else Family.IPV4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What only this question asks of the host. no_route: what the kernel said in its place.

    elsewhere: parts of the network's subnets that are routed to other links.
    sysctls: by their names below /proc/sys. carriers: links that have one or not.
    """

    out: IfName | None = None
    gateway: str = ""
    no_route: str = ""
    elsewhere: Mapping[str, IfName] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    carriers: Mapping[IfName, bool] = field(default_factory=dict)
    dnsmasq: int | None = None
    listening: frozenset[int] = frozenset()
    """UDP ports of DNS and DHCP that somebody listens on, whoever it is."""


@dataclass(frozen=True, slots=True)
class Answer:
    question: Question
    steps: tuple[Step, ...]
    gateway: str = ""

    @property
    def word(self) -> Word:
        words = {step.word for step in self.steps}
        return next(w for w in (Word.BLOCKED, Word.MAYBE, Word.OK) if w in words or w is Word.OK)


def blocked(at: str, text: str, cure: str) -> Step:
    return Step(at=at, word=Word.BLOCKED, text=text, cure=cure)


def restart(network: str) -> str:
    return f"virsh net-destroy {network}; virsh net-start {network}"


def free_address(live: Definition, fam: Family) -> str:
    """One that no lease or reservation has, for a guest made to try; "" if there is none."""
    for address in live.addresses:
        if Family.of(address) is not fam:
            continue
        taken = {host.address for host in live.hosts} | {address.ip}
        count = min(address.network.num_addresses - 2, _MOST_TRIED)
        for back in range(2, count + 2):
            candidate = address.network[-back]
            ranges = (r for r in live.ranges if r.start.version == candidate.version)
            inside = any(int(r.start) <= int(candidate) <= int(r.end) for r in ranges)
            if candidate not in taken and not inside:
                return f"{candidate}/{address.network.prefixlen}"
    return ""


def question(observed: Observed, subject: str, destination: str) -> Question:
    """Raises VnetdError where there is nothing of that name."""
    libvirt = observed.libvirt
    if libvirt is None:
        raise VnetdError("libvirt has not answered yet; see: vnetctl status")
    to: HostAddress | None = None
    if destination:
        try:
            to = ip_address(destination)
        except ValueError:
            raise VnetdError(f"{destination} is not an IP address") from None
    guest = None
    network = libvirt.networks.get(subject)
    if network is None:
        known = libvirt.networks
        taps = [t for t in libvirt.taps if t.domain == subject and t.network in known]
        if not taps:
            wrong = f"{subject} is neither a network nor a running guest on one"
            raise NoSuchNetwork(f"{wrong}; see: vnetctl status, virsh list")
        guest, network = subject, libvirt.networks[taps[0].network]
    return Question(network.name, network.live, guest, to)
