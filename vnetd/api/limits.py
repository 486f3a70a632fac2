"""What one user of the bus may cost the daemon. Anybody can reach it; nobody may keep it busy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

# Calls a second, and how many may be saved up. What looks at the whole host costs more than 1.
RATE, BURST = 100.0, 300.0
# A daemon of root's that has gone wild must not keep vnetd from healing either.
_ROOTS_SHARE = 10
ANSWER_BYTES = 16384
"""So much of an answer costs as much as a call."""

PENDING_CALLS, PENDING_CALLS_OF_ALL = 64, 256
PENDING_QUESTIONS = 4
"""Passwords that one user is asked for at the same time."""
_STRANGERS_CALLS = 16
# Connections a second that the bus is asked for: whose they are.
_STRANGERS = 300.0
_MOST_KNOWN = 1024

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(slots=True)
class Account:
    """Of one user (uid), or of one connection whose user the bus has not told yet (None)."""

    uid: int | None
    tokens: float
    at: float
    rate: float
    burst: float
    pending: int = 0
    questions: int = 0

    @property
    def is_known(self) -> bool:
        return self.uid is not None

    def charge(self, cost: float) -> None:
        self.tokens -= cost


class Limits:
    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic."""
        self._clock = clock
        self._users: dict[str, int] = {}
        self._accounts: dict[int | str, Account] = {}
        self._pending: Counter[bool] = Counter()  # of known users, and of strangers
        self._strangers, self._at = _STRANGERS, clock()

    def user(self, sender: str) -> int | None:
        return self._users.get(sender)

    def learn(self, sender: str, uid: int) -> None:
        """The bus has told whose connection this is."""
        self._accounts.pop(sender, None)
        _make_room(self._users)
        self._users[sender] = uid

    def admit(self, sender: str) -> Account | None:
        """The account to give back to done(); None for a call that is one too many."""
        account = self._account(sender)
        if account is None:
            return None
        now = self._clock()
        account.tokens = min(account.burst, account.tokens + (now - account.at) * account.rate)
        account.at = now
        if account.tokens < 1 or account.pending >= PENDING_CALLS:
            return None
        crowded = self._pending[account.is_known] >= PENDING_CALLS_OF_ALL
        if crowded and not _may_push(account):
            return None
        account.tokens -= 1
        account.pending += 1
        self._pending[account.is_known] += 1
        return account

    def done(self, account: Account) -> None:
        account.pending -= 1
        self._pending[account.is_known] -= 1

    def forget(self) -> None:
        """Another bus: its names are others."""
        self._users.clear()
        self._accounts.clear()

    def _welcome(self) -> bool:
        now = self._clock()
        self._strangers = min(_STRANGERS, self._strangers + (now - self._at) * _STRANGERS)
        self._at = now
        if self._strangers < 1:
            return False
        self._strangers -= 1
        return True

    def _account(self, sender: str) -> Account | None:
        uid = self._users.get(sender)
        key = sender if uid is None else uid
        if key not in self._accounts:
            if uid is None and not self._welcome():
                return None
            _make_room(self._accounts)
            share = _ROOTS_SHARE if uid == 0 else 1
            rate, burst = (0.0, _STRANGERS_CALLS) if uid is None else (RATE * share, BURST * share)
            self._accounts[key] = Account(uid, burst, self._clock(), rate, burst)
        return self._accounts[key]


def _may_push(account: Account) -> bool:
    """Root is never kept out: not as a user, nor while it is a stranger, one of whose calls is
    taken however many wait, for among strangers nobody knows which is root.
    """
    return account.uid == 0 or not (account.is_known or account.pending)


def _make_room(known: dict[_K, _V]) -> None:
    """Names of connections are never used again, so the oldest go."""
    while len(known) >= _MOST_KNOWN:
        del known[next(iter(known))]
