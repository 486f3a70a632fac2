"""pyroute2's socket to rtnetlink, in the one thread that it belongs to."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vnetd.core.model import IfName
from vnetd.errors import BackendError

_T = TypeVar("_T")


class IPRouteThread:
    """call() and submit() are for the loop; the rest is for the work that they are given."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._ipr: Any = None

    async def call(self, work: Callable[[], _T], what: str) -> _T:
        """Raises BackendError, beginning with what, where the kernel refuses."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except (OSError, NetlinkError) as error:
            raise BackendError(f"{what}: {error}") from error

    def submit(self, work: Callable[[], None]) -> None:
        """Before whatever is called afterwards; nobody learns how it went."""
        self._thread.submit(work)

    # -- in the thread

    @property
    def ipr(self) -> Any:
        if self._ipr is None:
            self._ipr = IPRoute()
        return self._ipr

    def find(self, name: IfName) -> int | None:
        """The index; asked for anew each time: a link made again under its name has another."""
        found = self.ipr.link_lookup(ifname=name)
        return int(found[0]) if found else None

    def index(self, name: IfName) -> int:
        """Raises OSError where there is no such link."""
        found = self.find(name)
        if found is None:
            raise OSError(errno.ENODEV, "no such link")
        return found

    def link(self, index: int) -> Any:
        (link,) = self.ipr.get_links(index)
        return link

    def ports(self, bridge: int) -> list[Any]:
        return [link for link in self.ipr.get_links() if link.get_attr("IFLA_MASTER") == bridge]

    def add_bridge(self, name: IfName, **attributes: object) -> None:
        """Where there is one already, that is fine."""
        try:
            self.ipr.link("add", ifname=name, kind="bridge", **attributes)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
