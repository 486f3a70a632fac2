"""What a policy says of the host's ports that lead to a network's guests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vnetd.core.model import Address, Family, HostAddress, Subnet
from vnetd.core.policy import values
from vnetd.core.policy.toml_table import Table


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads to a guest: an address, or a domain's name, whose address it
    follows. to_port: None keeps the port. sources: who may use it; empty for everybody.
    """

    protocol: Protocol
    ports: tuple[int, int]
    to: HostAddress | str
    to_port: int | None = None
    sources: tuple[Subnet, ...] = ()

    @property
    def families(self) -> frozenset[Family]:
        """Whose ports it takes."""
        if isinstance(self.to, str):
            return frozenset(map(Family.of, self.sources) if self.sources else Family)
        return frozenset({Family.of(self.to)})


_A_FORWARD = '{ protocol = "tcp", port = 8080, to = "10.77.0.20:80" }'


def read(section: Table, addresses: Sequence[Address]) -> tuple[Forward, ...]:
    found = [_forward(entry, addresses) for entry in section.tables("forwards", _A_FORWARD)]
    return tuple(item for item in found if item is not None)


def _forward(entry: Table, addresses: Sequence[Address]) -> Forward | None:
    protocol = entry.enum("protocol", list(Protocol), None)
    ports = entry.number_or_text("port", values.ports, 'write 8080 or a range: "8000-8010"')
    to = entry.parsed("to", values.target, 'write "ADDRESS:PORT" or "DOMAIN:PORT"')
    sources = entry.list("sources", values.subnet, '"192.0.2.0/24"')
    entry.close()
    for key in ("port", "to"):
        if key not in entry:
            entry.wrong(key, "is missing", f"write {_A_FORWARD}")
    if protocol is None or ports is None or to is None:
        return None
    host, to_port = to
    if to_port is not None and ports[0] != ports[1]:
        entry.wrong("to", "names one port for several", "leave the port out: each keeps its own")
    for source in sources:
        if not isinstance(host, str) and source.version != host.version:
            entry.wrong("sources", f'"{source}" and "{host}" are of two families', "write one")
    if not isinstance(host, str) and not any(host in address.network for address in addresses):
        known = ", ".join(str(address.network) for address in addresses) or "addresses"
        wrong = f'"{host}" is not in a subnet of the network'
        entry.wrong("to", wrong, f"take an address from {known}")
    return Forward(protocol, ports, host, to_port, sources)
