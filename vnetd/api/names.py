"""Names of org.vnetd1 on the bus."""

from __future__ import annotations

from functools import lru_cache

BUS_NAME = "org.vnetd1"
ROOT = "/org/vnetd1"
MANAGER = "org.vnetd1.Manager"
NETWORK = "org.vnetd1.Network"
BRIDGE = "org.vnetd1.Bridge"
PORT = "org.vnetd1.Port"
JOB = "org.vnetd1.Job"

PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"

LONGEST_PAUSE = 31_536_000
"""Seconds: a year."""

ERROR = "org.vnetd1.Error"
DBUS_ERROR = "org.freedesktop.DBus.Error"
NEEDS_PASSWORD = f"{DBUS_ERROR}.InteractiveAuthorizationRequired"


def network_path(name: str) -> str:
    return f"{ROOT}/network/{escape(name)}"


def bridge_path(name: str) -> str:
    return f"{ROOT}/bridge/{escape(name)}"


def port_path(device: str) -> str:
    return f"{ROOT}/port/{escape(device)}"


def job_path(number: int) -> str:
    return f"{ROOT}/job/{number}"


@lru_cache(maxsize=16384)
def escape(label: str) -> str:
    """As systemd does for bus labels (sd_bus_path_encode(3)): any text becomes a path element."""
    if not label:
        return "_"
    escaped = ""
    for at, byte in enumerate(label.encode()):
        sign = chr(byte)
        plain = sign.isascii() and (sign.isalpha() or (sign.isdigit() and at > 0))
        escaped += sign if plain else f"_{byte:02x}"
    return escaped
