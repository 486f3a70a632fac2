"""The policy, with today's values in place of the names that stand for them."""

from __future__ import annotations

from dataclasses import replace

from vnetd.core.model import DhcpHost, Libvirt
from vnetd.core.policy import NetworkPolicy, Policy


def desired(policy: Policy, libvirt: Libvirt | None) -> Policy:
    if libvirt is None or not policy.asked.domains:
        return policy
    networks = {name: _resolved(network, libvirt) for name, network in policy.networks.items()}
    return replace(policy, networks=networks)


def _resolved(network: NetworkPolicy, libvirt: Libvirt) -> NetworkPolicy:
    """A reservation for a domain is one for the MAC that it has on the network; one that has none
    waits.
    """
    hosts: list[DhcpHost] = []
    waiting: list[DhcpHost] = []
    for host in network.hosts:
        if host.domain is None:
            hosts.append(host)
            continue
        macs = [nic.mac for nic in libvirt.nics if (nic.domain, nic.network) == _key(host, network)]
        if macs:
            hosts.append(replace(host, domain=None, mac=macs[0]))
        else:
            waiting.append(host)
    return replace(network, hosts=tuple(hosts), waiting=tuple(waiting))


def _key(host: DhcpHost, network: NetworkPolicy) -> tuple[str | None, str]:
    return host.domain, network.name
