"""A desktop tool in small: GLib's own object manager as client of org.vnetd1.

Says what it sees, a line each: all objects at first, then each change. Needs the python3-gi of the
distribution, hence nothing of this tree.
"""

from typing import Any

from gi.repository import Gio, GLib


def main() -> None:
    loop = GLib.MainLoop()
    client = Gio.DBusObjectManagerClient.new_for_bus_sync(
        Gio.BusType.SYSTEM,
        Gio.DBusObjectManagerClientFlags.DO_NOT_AUTO_START,
        "org.vnetd1",
        "/org/vnetd1",
        None,
        None,
        None,
    )
    for found in sorted(client.get_objects(), key=lambda item: item.get_object_path()):
        for interface in found.get_interfaces():
            state = interface.get_cached_property("State")
            say("object", found.get_object_path(), interface.get_interface_name(), state.unpack())

    def added(_client: Any, item: Any) -> None:
        say("added", item.get_object_path())

    def removed(_client: Any, item: Any) -> None:
        say("removed", item.get_object_path())

    def changed(_client: Any, item: Any, _interface: Any, properties: Any, _gone: Any) -> None:
        say("changed", item.get_object_path(), *sorted(properties.keys()))

    client.connect("object-added", added)
    client.connect("object-removed", removed)
    client.connect("interface-proxy-properties-changed", changed)
    try:
        manager = Gio.DBusProxy.new_for_bus_sync(
            Gio.BusType.SYSTEM, 0, None, "org.vnetd1", "/org/vnetd1", "org.vnetd1.Manager", None
        )
        manager.call_sync("GetNetwork", GLib.Variant("(s)", ("none",)), 0, -1, None)
    except GLib.Error as error:
        say("error", Gio.DBusError.get_remote_error(error))
    say("ready")
    loop.run()


def say(*words: str) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    main()
