"""The calls to libvirt. All of them block, and raise libvirt.libvirtError."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import libvirt

from vnetd.backends.libvirt import domain_xml, network_xml
from vnetd.core.keep.dnsmasq import RefreshDnsmasq
from vnetd.core.keep.networks import SetUplink, UpdateDhcp
from vnetd.core.keep.taps import LimitTap, RecordPort
from vnetd.core.model import Asked, DhcpHost, DhcpRange, Lease, Libvirt, Network, Nic, Tap
from vnetd.core.policy import NetworkPolicy

# networkSetAutostart, bridge_driver.c
_LINK_EXISTS = "Failed to create symlink"


def read(connection: Any, asked: Asked) -> Libvirt:
    asked_at = time.monotonic()
    networks = _networks(connection)
    return Libvirt(
        version=version(connection),
        session=0,
        networks=networks,
        asked_at=asked_at,
        leases=leases(connection, leased(networks, asked)),
    )


def leased(networks: Mapping[str, Network], asked: Asked) -> frozenset[str]:
    """Networks whose leases matter: for a forward, or because one may stand in the way of a
    reservation.
    """
    reserved = {name for name, network in networks.items() if network.live and network.live.hosts}
    return asked.leases | reserved


def _networks(connection: Any) -> dict[str, Network]:
    active = _uuids(connection, libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)
    persistent = _uuids(connection, libvirt.VIR_CONNECT_LIST_NETWORKS_PERSISTENT)
    autostart = _uuids(connection, libvirt.VIR_CONNECT_LIST_NETWORKS_AUTOSTART)
    networks = {}
    for network in connection.listAllNetworks():
        name, uuid = network.name(), network.UUIDString()
        try:
            live = network.XMLDesc() if uuid in active else None
            config = (
                network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE) if uuid in persistent else None
            )
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
                continue  # undefined since the list was made
            raise
        if live or config:
            networks[name] = Network(
                name=name,
                config=network_xml.parse(config) if config else None,
                live=network_xml.parse(live) if live else None,
                autostart=uuid in autostart,
            )
    return networks


def _uuids(connection: Any, flag: int) -> set[str]:
    return {network.UUIDString() for network in connection.listAllNetworks(flag)}


def taps(connection: Any) -> tuple[Tap, ...]:
    found: list[Tap] = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            state, reason = domain.state()[:2]
            paused = state == libvirt.VIR_DOMAIN_PAUSED
            if paused and reason == libvirt.VIR_DOMAIN_PAUSED_STARTING_UP:
                continue  # libvirt is still making its taps
            found += domain_xml.taps(domain.XMLDesc(), paused=paused)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return tuple(found)


def nics(connection: Any, domains: Iterable[str]) -> tuple[Nic, ...]:
    """Of those that there are."""
    found: list[Nic] = []
    for name in sorted(domains):
        try:
            domain = connection.lookupByName(name)
            flag = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
            found += domain_xml.nics(domain.XMLDesc(flag))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return tuple(found)


def failed(connection: Any) -> dict[str, frozenset[str]]:
    """Domains whose last start failed, with the networks that they are defined on."""
    found = {}
    for domain, facts in connection.getAllDomainStats(
        libvirt.VIR_DOMAIN_STATS_STATE, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_INACTIVE
    ):
        if facts.get("state.reason") == libvirt.VIR_DOMAIN_SHUTOFF_FAILED:
            try:
                found[domain.name()] = frozenset(
                    nic.network for nic in domain_xml.nics(domain.XMLDesc())
                )
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
    return found


def ports(connection: Any, networks: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    for name in networks:
        try:
            network = lookup(connection, name)
            if network.isActive():
                found.update(port.UUIDString() for port in network.listAllPorts())
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                raise
    return frozenset(found)


def active(connection: Any) -> list[str]:
    flag = libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE
    return [network.name() for network in connection.listAllNetworks(flag)]


def leases(connection: Any, networks: Iterable[str]) -> tuple[Lease, ...]:
    """Of those that run, the newest of each first."""
    found = []
    for name in sorted(networks):
        try:
            network = lookup(connection, name)
            of_one = network.DHCPLeases() if network.isActive() else []
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
                continue
            raise
        for lease in sorted(of_one, key=lambda lease: -lease["expirytime"]):
            if lease["mac"]:
                found.append(
                    Lease(
                        network=name,
                        mac=lease["mac"].lower(),
                        address=ip_address(lease["ipaddr"]),
                        name=lease["hostname"] or "",
                        expires=lease["expirytime"],
                    )
                )
    return tuple(found)


def version(connection: Any) -> str:
    number = connection.getLibVersion()
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def lookup(connection: Any, name: str) -> Any:
    return connection.networkLookupByName(name)


def define(connection: Any, policy: NetworkPolicy) -> None:
    try:
        network = lookup(connection, policy.name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            raise
        base = None
    else:
        if network.isPersistent():
            base = network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE)
        else:
            base = network_xml.definition(network.XMLDesc())
    connection.networkDefineXMLFlags(
        network_xml.render(policy, base), libvirt.VIR_NETWORK_DEFINE_VALIDATE
    )


def set_autostart(connection: Any, name: str, on: bool) -> None:
    """After a start with a definition that it could not read, libvirt stumbles over its own link to
    it, and removes that only with the definition. A network that runs goes on meanwhile.
    """
    network = lookup(connection, name)
    try:
        network.setAutostart(on)
    except libvirt.libvirtError as error:
        if not (on and _LINK_EXISTS in str(error) and network.isActive()):
            raise
        xml = network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE)
        network.undefine()
        connection.networkDefineXML(xml).setAutostart(on)


def update_dhcp(connection: Any, action: UpdateDhcp) -> None:
    network = lookup(connection, action.network)
    base = network.XMLDesc()
    sections: dict[type[DhcpRange] | type[DhcpHost], int] = {
        DhcpRange: libvirt.VIR_NETWORK_SECTION_IP_DHCP_RANGE,
        DhcpHost: libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST,
    }
    changes = [(libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, item) for item in action.remove]
    changes += [(libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, item) for item in action.add]
    for command, item in changes:
        network.update(
            command,
            sections[type(item)],
            network_xml.dhcp_parent(base, item),
            network_xml.dhcp_item(item),
            libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE,
        )


def set_uplink(connection: Any, action: SetUplink) -> None:
    """Its rules have no uplink in between: one more would be refused."""
    network = lookup(connection, action.network)
    changes = [(libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, action.new)]
    if action.old is not None:
        changes.insert(0, (libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, action.old))
    for command, device in changes:
        network.update(
            command,
            libvirt.VIR_NETWORK_SECTION_FORWARD_INTERFACE,
            -1,
            network_xml.uplink_item(device),
            libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE,
        )


def start(connection: Any, name: str) -> None:
    network = lookup(connection, name)
    if not network.isActive():
        network.create()


def restart(connection: Any, name: str) -> None:
    """One without a definition is gone once it is stopped: it has one as long as this takes."""
    network = lookup(connection, name)
    transient = not network.isPersistent()
    if transient:
        network = connection.networkDefineXML(network_xml.definition(network.XMLDesc()))
    if network.isActive():
        network.destroy()
    network.create()
    if transient:
        network.undefine()


def refresh_dnsmasq(connection: Any, action: RefreshDnsmasq) -> None:
    """An update of its hosts makes libvirt look for it, write its files and start it; the update is
    taken back. One that fails libvirt remembers all the same: it is then still to be taken back.
    """
    network = lookup(connection, action.network)
    if action.dns:
        section, key = libvirt.VIR_NETWORK_SECTION_DNS_HOST, "vnetd.invalid"
        host = f"<host ip='192.0.2.1'><hostname>{key}</hostname></host>"
    else:
        section, key = libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, "52:54:00:00:00:00"
        host = f"<host mac='{key}' ip='{action.address}'/>"
    commands = [libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE]
    if key not in network.XMLDesc():
        commands.insert(0, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST)
    for command in commands:
        network.update(command, section, -1, host, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)


def domain(connection: Any, name: str) -> str:
    """Its live XML."""
    return str(connection.lookupByName(name).XMLDesc())


def record_port(connection: Any, action: RecordPort, domain: str) -> None:
    port = domain_xml.network_port(domain, action.port, action.bridge)
    network = lookup(connection, action.network)
    network.portCreateXML(port, libvirt.VIR_NETWORK_PORT_CREATE_RECLAIM)


def limit_tap(connection: Any, action: LimitTap) -> None:
    """libvirt takes its own values as new ones, and sets them in the kernel."""
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    domain = connection.lookupByName(action.domain)
    values = domain.interfaceParameters(action.tap, live)
    domain.setInterfaceParameters(action.tap, {k: v for k, v in values.items() if v}, live)


def remove(connection: Any, name: str) -> None:
    network = lookup(connection, name)
    if network.isActive():
        network.destroy()
    if network.isPersistent():
        network.undefine()
