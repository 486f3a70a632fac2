"""What can go wrong, in as few classes as callers tell apart."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass


class VnetdError(Exception):
    """Base of all errors that vnetd raises on purpose. The text is for an admin to read."""


class NoSuchNetwork(VnetdError):
    """Nothing has the name that somebody asks for."""


class Conflict(VnetdError):
    """Somebody else has changed meanwhile what a caller wants to change; nothing is done."""


class BackendError(VnetdError):
    """A system that vnetd reads or changes refused or failed; trying again later may help."""


def is_want_of_files(error: OSError) -> bool:
    """Whether it says nothing of what was to be read: vnetd, or the host, has too many open."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


class NotConnected(BackendError):
    """The system is not there at the moment; its watcher brings it back."""


class Hangs(BackendError):
    """Nothing came of it in all the time that it was given; the next try will cost as much."""


class Busy(BackendError):
    """The system lives, but is at work on something else; its watcher tells when it is through."""


class Outdated(BackendError):
    """Somebody has written since the look that an action is for; nothing is done."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a policy file. line is 0 where none can be named (the whole file)."""

    file: str
    line: int
    key: str
    wrong: str
    right: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f"{self.key}: " if self.key else ""
        return f"{place}: {key}{self.wrong}; {self.right}"


class PolicyError(VnetdError):
    """A policy is not valid. All its mistakes are in problems, in the order of the files."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
