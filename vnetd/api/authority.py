"""Whether a caller may: polkit is asked, with the caller's own name on the bus as subject.

Root may without being asked for, so that vnetctl works while polkit does not. All others may only
where polkit says yes: any error, silence or absence of it is a no.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from dbus_next.signature import Variant

from vnetd.api.calls import Call, CallError
from vnetd.api.limits import PENDING_QUESTIONS
from vnetd.api.names import DBUS_ERROR, ERROR, NEEDS_PASSWORD
from vnetd.bus.sysbus import BUS, RemoteError
from vnetd.errors import VnetdError

log = logging.getLogger(__name__)

_POLKIT = "org.freedesktop.PolicyKit1"
_AUTHORITY = ("/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority")
_ALLOW_USER_INTERACTION = 1
_ANSWER_SECONDS = 5.0
# A user may look for the password; the question does not stay for ever.
_QUESTION_SECONDS = 300.0
_ABSENT = (f"{DBUS_ERROR}.ServiceUnknown", f"{DBUS_ERROR}.NameHasNoOwner")


class Ask(Protocol):
    """sysbus.call on the connection that the call came from."""

    async def __call__(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: Sequence[object],
        *,
        seconds: float,
    ) -> list[Any]: ...


class Authority:
    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._number = 0
        self._open: dict[str, set[asyncio.Future[tuple[bool, bool]]]] = {}

    async def require(self, call: Call, action: str) -> None:
        """Raises CallError unless polkit allows it."""
        if not action or call.uid == 0:
            return
        if call.head.may_interact:
            allowed, challenge = await self._question(call, action)
        else:
            allowed, challenge = await self._check(call, action, 0, "", _ANSWER_SECONDS)
        if allowed:
            return
        if challenge and not call.head.may_interact:
            text = f"{action} needs a password: the call must allow interactive authorization"
            raise CallError(NEEDS_PASSWORD, text)
        raise _refused(f"{call.head.member} needs {action}, which polkit does not grant")

    def left(self, sender: str) -> None:
        """The caller has gone: nobody is to be asked for its sake any more."""
        for check in self._open.get(sender, ()):
            check.cancel()

    async def _question(self, call: Call, action: str) -> tuple[bool, bool]:
        """Its user may be asked for a password, for as long as the caller stays."""
        sender, account = call.head.sender, call.account
        if account.questions >= PENDING_QUESTIONS:
            text = f"this user is being asked for {PENDING_QUESTIONS} passwords already"
            raise CallError(f"{ERROR}.LimitsExceeded", text)
        account.questions += 1
        leaves = f"type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{sender}'"
        self._number += 1
        cancel_id = f"vnetd-{self._number}"
        check = asyncio.ensure_future(self._watched(call, action, leaves, cancel_id))
        self._open.setdefault(sender, set()).add(check)
        try:
            await asyncio.wait({check})
            if check.cancelled():
                raise _refused("the caller has left")
            return check.result()
        finally:
            account.questions -= 1
            self._open[sender].discard(check)
            if not self._open[sender]:
                del self._open[sender]
            if check.cancel() or check.cancelled() or check.exception():
                await self._tell(_POLKIT, *_AUTHORITY, "CancelCheckAuthorization", cancel_id)
            await self._tell(BUS, "/", BUS, "RemoveMatch", leaves)

    async def _watched(
        self, call: Call, action: str, leaves: str, cancel_id: str
    ) -> tuple[bool, bool]:
        # Heard of from here on; a caller that has left before is one that polkit does not know.
        await self._tell(BUS, "/", BUS, "AddMatch", leaves)
        return await self._check(
            call, action, _ALLOW_USER_INTERACTION, cancel_id, _QUESTION_SECONDS
        )

    async def _check(
        self, call: Call, action: str, flags: int, cancel_id: str, seconds: float
    ) -> tuple[bool, bool]:
        """Whether it is allowed, and whether it would be with a password. Raises CallError."""
        subject = ["system-bus-name", {"name": Variant("s", call.head.sender)}]
        body = [subject, action, {}, flags, cancel_id]
        try:
            ((allowed, challenge, _),) = await self._ask(
                _POLKIT,
                *_AUTHORITY,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                body,
                seconds=seconds,
            )
        except RemoteError as error:
            log.debug("polkit: %s: %s", error.name, error)
            if error.name in _ABSENT:
                raise _refused("polkit does not run here, so only root may") from None
            wrong = f"polkit could not say whether the caller may ({error.name})"
            raise _refused(f"{wrong}, so only root may") from None
        except VnetdError as error:
            log.debug("polkit: %s", error)
            raise _refused("polkit does not answer, so only root may") from None
        return bool(allowed), bool(challenge)

    async def _tell(
        self, destination: str, path: str, interface: str, member: str, text: str
    ) -> None:
        with suppress(VnetdError):
            await self._ask(destination, path, interface, member, "s", [text], seconds=5.0)


def _refused(text: str) -> CallError:
    return CallError(f"{ERROR}.NotAuthorized", text)
