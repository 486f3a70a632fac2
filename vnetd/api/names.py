"""Names of org.vnetd1 on the bus. The files in dbus/ are the contract; a test compares."""

from __future__ import annotations

from dbus_next import introspection as i
from dbus_next.constants import ArgDirection, PropertyAccess

BUS_NAME = "org.vnetd1"
ROOT = "/org/vnetd1"
MANAGER = "org.vnetd1.Manager"
NETWORK = "org.vnetd1.Network"
NETWORKS = f"{ROOT}/network"

PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"


def network_path(name: str) -> str:
    return f"{NETWORKS}/{escape(name)}"


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


def _method(name: str, takes: str = "", gives: str = "") -> i.Method:
    """Arguments as "signature name,signature name"."""
    return i.Method(name, _args(takes, ArgDirection.IN), _args(gives, ArgDirection.OUT))


def _signal(name: str, args: str) -> i.Signal:
    return i.Signal(name, _args(args, None))


def _property(name: str, signature: str) -> i.Property:
    return i.Property(name, signature, PropertyAccess.READ)


def _args(text: str, direction: ArgDirection | None) -> list[i.Arg]:
    pairs = (pair.split() for pair in text.split(",") if pair)
    # dbus-next annotates one direction as a list of them
    return [i.Arg(signature, direction, name) for signature, name in pairs]  # type: ignore[arg-type]


MANAGER_INTERFACE = i.Interface(
    MANAGER,
    methods=[
        _method("Reconcile", gives="s state"),
        _method("Reload"),
        _method("Plan", gives="aa{sv} actions"),
        _method("Why", takes="s subject,s destination", gives="s answer"),
        _method("Pause", takes="u seconds"),
        _method("Resume"),
        _method("History", gives="aa{sv} records"),
    ],
    signals=[
        _signal("DriftDetected", "s object,as drift,a{sv} cause"),
        _signal("Repaired", "s object,a{sv} record"),
        _signal("RepairFailed", "s object,a{sv} record"),
    ],
    properties=[
        _property("Version", "s"),
        _property("State", "s"),
        _property("Mode", "s"),
        _property("Reasons", "as"),
        _property("Libvirt", "s"),
        _property("Firewall", "s"),
        _property("Guard", "s"),
    ],
)

NETWORK_INTERFACE = i.Interface(
    NETWORK,
    properties=[
        _property("Name", "s"),
        _property("State", "s"),
        _property("Kept", "s"),
        _property("UUID", "s"),
        _property("Mode", "s"),
        _property("Bridge", "s"),
        _property("Active", "b"),
        _property("Autostart", "b"),
        _property("Addresses", "as"),
        _property("Guard", "s"),
        _property("Drift", "as"),
        _property("Reasons", "as"),
    ],
)

STANDARD_INTERFACES = (
    i.Interface(
        PROPERTIES,
        methods=[
            _method("Get", "s interface,s name", "v value"),
            _method("GetAll", "s interface", "a{sv} values"),
            _method("Set", "s interface,s name,v value"),
        ],
        signals=[_signal("PropertiesChanged", "s interface,a{sv} changed,as invalidated")],
    ),
    i.Interface(INTROSPECTABLE, methods=[_method("Introspect", gives="s xml")]),
    i.Interface(PEER, methods=[_method("Ping"), _method("GetMachineId", gives="s id")]),
)

OBJECT_MANAGER_INTERFACE = i.Interface(
    OBJECT_MANAGER,
    methods=[_method("GetManagedObjects", gives="a{oa{sa{sv}}} objects")],
    signals=[
        _signal("InterfacesAdded", "o object,a{sa{sv}} interfaces"),
        _signal("InterfacesRemoved", "o object,as interfaces"),
    ],
)
