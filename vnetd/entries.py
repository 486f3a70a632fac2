"""The journal entries that programs may look for: each with its MESSAGE_ID and its fields.

systemd/vnetd.catalog explains them to people.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import StrEnum

from vnetd import journal
from vnetd.core.model import Cause, network_of
from vnetd.core.record import Outcome, Record
from vnetd.core.wording import few
from vnetd.errors import Problem

log = logging.getLogger(__name__)


class Message(StrEnum):
    """MESSAGE_ID=: stable for ever."""

    REPAIRED = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a01"
    FAILED = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a02"
    CONFLICT = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a03"
    DRIFT = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a04"
    STATE = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a05"
    POLICY_LOADED = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a06"
    POLICY_REJECTED = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a07"
    PAUSED = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a08"
    RESUMED = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a09"
    HISTORY_LOST = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a0a"
    POLICY_EDITED = "8d1f3a0b5c5e4f0c9d7a3b1e6f2c4a0b"


_OUTCOMES = {
    Outcome.REPAIRED: (Message.REPAIRED, logging.INFO),
    Outcome.FAILED: (Message.FAILED, logging.ERROR),
    Outcome.CONFLICT: (Message.CONFLICT, logging.WARNING),
}


def drift_detected(object_: str, drift: Sequence[str], cause: Cause | None) -> None:
    by = f", by {cause}" if cause else ""
    extra = journal.fields(Message.DRIFT, **_about(object_), **_drift(drift, cause))
    log.warning("%s: %s%s", object_, few(drift, between="; "), by, extra=extra)


def recorded(record: Record) -> None:
    message, level = _OUTCOMES[record.outcome]
    extra = journal.fields(
        message,
        **_about(record.object),
        **_drift(record.drift, record.cause),
        actions="; ".join(record.actions),
        ms=record.ms,
        outcome=record.outcome.value,
    )
    what = "; ".join(record.actions or record.drift)
    text = "%s: %s in %d ms: %s"
    log.log(level, text, record.object, record.outcome, record.ms, what, extra=extra)


def state(word: str, line: str) -> None:
    log.info("state: %s", line, extra=journal.fields(Message.STATE, state=word))


def policy_loaded(networks: int, files: int) -> None:
    extra = journal.fields(Message.POLICY_LOADED, networks=networks, files=files)
    log.info("policy: %d networks from %d files", networks, files, extra=extra)


def policy_rejected(problems: Sequence[Problem]) -> None:
    for item in problems:
        extra = journal.fields(
            Message.POLICY_REJECTED, file=item.file, line=item.line or "", key=item.key
        )
        log.error("policy: %s", item, extra=extra)


def policy_edited(file: str, uid: int) -> None:
    extra = journal.fields(Message.POLICY_EDITED, file=file, uid=uid)
    log.info("policy: %s changed over the bus by uid %d", file, uid, extra=extra)


def paused(seconds: float) -> None:
    log.info("paused for %d s", seconds, extra=journal.fields(Message.PAUSED, seconds=seconds))


def resumed() -> None:
    log.info("resumed", extra=journal.fields(Message.RESUMED))


def history_lost(text: str) -> None:
    log.error("%s", text, extra=journal.fields(Message.HISTORY_LOST))


def _about(object_: str) -> dict[str, object]:
    return {"object": object_, "network": network_of(object_) or ""}


def _drift(drift: Sequence[str], cause: Cause | None) -> dict[str, object]:
    return {
        "drift": "; ".join(drift),
        "culprit": cause or "",
        "culprit_process": cause.process if cause else "",
        "culprit_pid": cause.pid if cause else "",
    }
