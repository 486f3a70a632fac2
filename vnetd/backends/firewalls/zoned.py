"""The bridges that vnetd has put into a zone of firewalld, written down: firewalld does not tell
who put them there, and a vnetd that is started again must still take them back.

A zone of a bridge lasts until the host is started again, and so does what is written here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Zoned:
    def __init__(self, directory: Path | None) -> None:
        """None: it is remembered in memory only."""
        self._path = directory / "zones.json" if directory else None
        self._boot = _BOOT.read_text().strip()
        self._bridges = self._read()

    @property
    def bridges(self) -> Mapping[str, tuple[str, str]]:
        """Bridge → its network, and the zone that it was in before."""
        return dict(self._bridges)

    def note(self, bridge: str, network: str, before: str) -> None:
        """Of several zones before, the first."""
        if bridge not in self._bridges:
            self._write({**self._bridges, bridge: (network, before)})

    def forget(self, bridge: str) -> None:
        self._write({name: said for name, said in self._bridges.items() if name != bridge})

    def _read(self) -> dict[str, tuple[str, str]]:
        """Empty, where what stands there is not whole or of another boot."""
        try:
            said = json.loads(self._path.read_text()) if self._path else {}
            if said.get("boot") != self._boot:
                return {}
            return {str(b): (str(n), str(z)) for b, (n, z) in said["bridges"].items()}
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return {}

    def _write(self, bridges: dict[str, tuple[str, str]]) -> None:
        """A disk that takes no more holds up no network: then it is remembered only."""
        self._bridges = bridges
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps({"boot": self._boot, "bridges": bridges}))
            new.replace(self._path)
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)
