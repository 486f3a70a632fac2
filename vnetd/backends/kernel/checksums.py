"""The tc filters on bridges that complete the checksums of DHCP answers."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace

from vnetd.backends import netlink
from vnetd.backends.kernel import rtnetlink as rt
from vnetd.backends.kernel import traffic_control as tc
from vnetd.core.model import Link

# Others count theirs from 1.
_OWN_ACTION = 0x766E6574


class ChecksumFilters:
    """Belongs to one thread."""

    def __init__(self) -> None:
        self._kernel = rt.Rtnetlink()
        self._asking = netlink.open_route()
        self._possible: bool | None = None

    def look(self, link: Link, roots: Mapping[int, str]) -> Link:
        """The same with what is there. Where the kernel can have no such filter none is missing:
        libvirt then starts no network, unless somebody has replaced its tc.
        """
        if not self._can():
            return link
        has = tc.completes_checksums(netlink.dump(self._asking, tc.filters(link.index)))
        root = roots.get(link.index, "")
        return replace(link, root_qdisc=root, checksum_filter=has)

    def add(self, index: int) -> None:
        """As libvirt does, unless it has done so itself. Raises OSError."""
        root = tc.add_root(index)
        rt.check([root], self._kernel.run([root]), errno.EEXIST)
        if not tc.completes_checksums(netlink.dump(self._asking, tc.filters(index))):
            one = tc.add_filter(index)
            rt.check([one], self._kernel.run([one]))

    def _can(self) -> bool:
        """Asked once: the kernel loads the module for it, or has none."""
        if self._possible is None:
            made, _ = self._kernel.run(tc.try_action(_OWN_ACTION))
            self._possible = made in (0, errno.EEXIST)
        return self._possible
