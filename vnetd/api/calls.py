"""One call of somebody, and what it can be answered with instead of a result."""

from __future__ import annotations

import ipaddress
import unicodedata
from dataclasses import dataclass
from typing import Any

from vnetd.api.limits import Account
from vnetd.api.names import ERROR
from vnetd.bus.frames import Head

# libvirt's own longest name of a network or domain, which must be a file's name.
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class Call:
    """arguments have the types that the contract says; uid is the bus's word."""

    head: Head
    arguments: list[Any]
    uid: int
    account: Account


class CallError(Exception):
    """Answered to the caller. name: the error's full name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def invalid(text: str) -> CallError:
    return CallError(f"{ERROR}.InvalidArgument", text)


def name(value: str, what: str) -> str:
    """A name of something of libvirt's. Raises CallError for what can be none."""
    if not value or len(value.encode()) > _LONGEST_NAME:
        raise invalid(f"the name of {what} has 1 to {_LONGEST_NAME} bytes")
    if "/" in value or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in value):
        raise invalid(f"the name of {what} has neither slashes nor control characters")
    return value


def address(value: str) -> str:
    """An IP address, or nothing. Raises CallError."""
    try:
        return str(ipaddress.ip_address(value)) if value else ""
    except ValueError:
        right = 'the destination must be an IP address, or "" for the default gateway'
        raise invalid(f"{right}: {clip(value)} is neither") from None


def clip(text: str) -> str:
    """Of a caller's own words as many as help."""
    return text if len(text) <= 80 else text[:79] + "…"
