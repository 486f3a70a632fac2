"""The kernel's forwarding: read and written below /proc/sys, told of by rtnetlink."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

from vnetd.backends import netlink
from vnetd.backends.base import Poke
from vnetd.core.actions import Action
from vnetd.core.keep import sysctls
from vnetd.core.keep.sysctls import SetSysctl
from vnetd.core.model import Observed, Source
from vnetd.errors import BackendError

_ROOT = Path("/proc/sys")
_IPV6_ROUTES = Path("/proc/net/ipv6_route")
# linux/ipv6_route.h: a default route that a router advertisement made
_RTF_DEFAULT, _RTF_ADDRCONF = 0x00010000, 0x00040000


class Sysctls:
    source = Source.SYSCTLS
    actions: tuple[type[Action], ...] = (SetSysctl,)

    def __init__(self) -> None:
        self._events = netlink.open_netconf_events()

    async def observe(self, observed: Observed) -> Observed:
        networks = observed.libvirt.networks.values() if observed.libvirt else ()
        names = sysctls.of_interest(network.live for network in networks if network.live)
        names += [f"net/ipv6/conf/{dev}/accept_ra" for dev in _advertised()]
        values = {name: _read(name) for name in names}
        return replace(
            observed, sysctls={name: value for name, value in values.items() if value is not None}
        )

    async def apply(self, action: Action) -> None:
        assert isinstance(action, SetSysctl), action
        wanted = [(action.name, action.value)]
        if action.name == sysctls.IPV6_FORWARDING:
            # Looked up anew: a route that has come since the plan was made would be lost.
            fed = [f"net/ipv6/conf/{device}/accept_ra" for device in _advertised()]
            wanted[:0] = [(name, "2") for name in fed if _read(name) == "1"]
        try:
            for name, value in wanted:
                (_ROOT / name).write_text(value)
        except OSError as error:
            refused = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
            hint = "; vnetd's unit must have ReadWritePaths=/proc/sys/net" if refused else ""
            raise BackendError(f"sysctl {action.name}: {error.strerror}{hint}") from error

    async def watch(self, poke: Poke) -> None:
        def on_data(data: bytes | None) -> None:
            lost = data is None
            poke(self.source, reason="netconf events were lost" if lost else "forwarding changed")

        await netlink.listen(self._events, on_data)


def _read(name: str) -> str | None:
    """None: the kernel has no such thing (no IPv6), or the link has just gone."""
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None


def _advertised() -> list[str]:
    """Links with a default route that came by router advertisement."""
    try:
        lines = _IPV6_ROUTES.read_text().splitlines()
    except OSError:
        return []
    wanted = _RTF_DEFAULT | _RTF_ADDRCONF
    routes = [line.split() for line in lines]
    return sorted({words[9] for words in routes if int(words[8], 16) & wanted == wanted})
