"""What sysctls were before vnetd set them, remembered over crashes and restarts: in a file that is
replaced as a whole, before the sysctl is written. After a reboot all are new.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from vnetd.core.model import Raised

log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Memory:
    """Where the file cannot be read or written, for this process only: a repair does not wait for
    a disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _BOOT_ID.read_text().strip()
        self._raised = self._load()
        self._told = ""

    @property
    def raised(self) -> Mapping[str, Raised]:
        return dict(self._raised)

    def note(self, name: str, before: str, value: str) -> None:
        if name not in self._raised:
            self._raised[name] = Raised(before, value)
            self._save()

    def forget(self, *names: str) -> None:
        known = [name for name in names if self._raised.pop(name, None)]
        if known:
            self._save()

    def _load(self) -> dict[str, Raised]:
        try:
            found = json.loads(self._path.read_text())
            if found["boot"] != self._boot:
                return {}
            return {str(name): Raised(str(a), str(b)) for name, (a, b) in found["sysctls"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: %s: what vnetd has set before now stays set", self._path, error)
            return {}

    def _save(self) -> None:
        sysctls = {name: [item.before, item.value] for name, item in self._raised.items()}
        new = self._path.with_name(f".{self._path.name}.new")
        try:
            with new.open("w") as file:
                json.dump({"boot": self._boot, "sysctls": sysctls}, file)
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._path)
        except OSError as error:
            if self._told != str(error):
                self._told = str(error)
                log.warning("%s: what vnetd sets from now on may stay set", error)
