"""The interfaces of org.vnetd1, read from the XML files that are the contract (dbus/)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vnetd.api.names import (
    BRIDGE,
    INTROSPECTABLE,
    JOB,
    MANAGER,
    NETWORK,
    OBJECT_MANAGER,
    PEER,
    PORT,
    PROPERTIES,
)
from vnetd.errors import VnetdError

# In a clone beside the package; else where its packages put the interfaces of the bus.
_FOLDERS = (Path(__file__).parents[2] / "dbus", Path("/usr/share/dbus-1/interfaces"))

_STANDARD = f"""\
<node>
  <interface name="{PROPERTIES}">
    <method name="Get">
      <arg direction="in" type="s" name="interface"/>
      <arg direction="in" type="s" name="name"/>
      <arg direction="out" type="v" name="value"/>
    </method>
    <method name="GetAll">
      <arg direction="in" type="s" name="interface"/>
      <arg direction="out" type="a{{sv}}" name="values"/>
    </method>
    <method name="Set">
      <arg direction="in" type="s" name="interface"/>
      <arg direction="in" type="s" name="name"/>
      <arg direction="in" type="v" name="value"/>
    </method>
    <signal name="PropertiesChanged">
      <arg type="s" name="interface"/>
      <arg type="a{{sv}}" name="changed"/>
      <arg type="as" name="invalidated"/>
    </signal>
  </interface>
  <interface name="{INTROSPECTABLE}">
    <method name="Introspect">
      <arg direction="out" type="s" name="xml"/>
    </method>
  </interface>
  <interface name="{PEER}">
    <method name="Ping"/>
    <method name="GetMachineId">
      <arg direction="out" type="s" name="id"/>
    </method>
  </interface>
  <interface name="{OBJECT_MANAGER}">
    <method name="GetManagedObjects">
      <arg direction="out" type="a{{oa{{sa{{sv}}}}}}" name="objects"/>
    </method>
    <signal name="InterfacesAdded">
      <arg type="o" name="object"/>
      <arg type="a{{sa{{sv}}}}" name="interfaces"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg type="o" name="object"/>
      <arg type="as" name="interfaces"/>
    </signal>
  </interface>
</node>
"""


@dataclass(frozen=True, slots=True)
class Interface:
    """takes, gives, signals, properties: signatures by member. actions: polkit's, by method; "" is
    everybody's. xml: for Introspect.
    """

    name: str
    takes: Mapping[str, str]
    gives: Mapping[str, str]
    signals: Mapping[str, str]
    properties: Mapping[str, str]
    actions: Mapping[str, str]
    xml: str


@cache
def interfaces() -> dict[str, Interface]:
    """By name. Raises VnetdError where vnetd is installed without them."""
    own = (MANAGER, NETWORK, BRIDGE, PORT, JOB)
    found = _read(_STANDARD)
    for name in own:
        found |= _read(_text(f"{name}.xml"))
    return found


def introspection(names: tuple[str, ...], children: tuple[str, ...]) -> str:
    """What Introspect answers for an object with these interfaces and objects below it."""
    parts = [interfaces()[name].xml for name in names]
    parts += [f'  <node name="{child}"/>\n' for child in children]
    return f"{_DOCTYPE}<node>\n{''.join(parts)}</node>\n"


_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


def _text(file: str) -> str:
    path = next((folder / file for folder in _FOLDERS if (folder / file).exists()), None)
    try:
        return (path or _FOLDERS[-1] / file).read_text()
    except OSError as error:
        wrong = f"{error.filename}: {error.strerror}; it is a part of vnetd"
        raise VnetdError(wrong) from error


def _read(text: str) -> dict[str, Interface]:
    without_comments = re.sub(r"\n *<!--.*?-->", "", text, flags=re.DOTALL)
    return {
        element.get("name", ""): _interface(element)
        for element in ET.fromstring(without_comments).iterfind("interface")
    }


def _interface(element: ET.Element) -> Interface:
    methods = element.findall("method")
    return Interface(
        name=element.get("name", ""),
        takes={_name(item): _signature(item, "arg[@direction='in']") for item in methods},
        gives={_name(item): _signature(item, "arg[@direction='out']") for item in methods},
        signals={_name(item): _signature(item, "arg") for item in element.iterfind("signal")},
        properties={_name(item): item.get("type", "") for item in element.iterfind("property")},
        actions={_name(item): _action(item, element.get("name", "")) for item in methods},
        xml="  " + ET.tostring(element, encoding="unicode").strip() + "\n",
    )


def _name(element: ET.Element) -> str:
    return element.get("name", "")


def _signature(element: ET.Element, args: str) -> str:
    return "".join(arg.get("type", "") for arg in element.iterfind(args))


def _action(method: ET.Element, interface: str) -> str:
    """A method of vnetd's own that names none is no one's."""
    found = method.find("annotation[@name='org.vnetd1.Action']")
    if found is None and interface.startswith("org.vnetd1."):
        raise ValueError(f"{interface}.{_name(method)} says nothing of org.vnetd1.Action")
    return "" if found is None else found.get("value", "")
