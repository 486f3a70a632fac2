"""What the reconciler knows of the systems behind it."""

from __future__ import annotations

from typing import Protocol

from vnetd.core.actions import Action
from vnetd.core.model import Cause, Observed, Source

CHECK_SECONDS = 10.0
"""How often backends look for changes that the kernel tells nobody of, where a network needs it."""


class Poke(Protocol):
    """Says: look again, there. cause: who changed it, if the kernel told.

    writing: True while libvirt is at work on it, False when it says that it is through. at_once:
    whoever is at work is not waited for.
    """

    def __call__(
        self,
        *sources: Source,
        reason: str,
        cause: Cause | None = None,
        writing: bool | None = None,
        at_once: bool = False,
    ) -> None: ...


class Backend(Protocol):
    @property
    def source(self) -> Source: ...

    @property
    def actions(self) -> tuple[type[Action], ...]:
        """The actions that apply takes."""

    async def observe(self, observed: Observed) -> Observed:
        """The same with a fresh look at this source. Raises BackendError."""

    async def apply(self, action: Action) -> None:
        """Returns when it is done; repeating it does no harm. Raises BackendError."""

    async def watch(self, poke: Poke) -> None:
        """Poke on every change, until cancelled."""
