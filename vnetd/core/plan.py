"""Turn drift into actions, in the order in which they must run. Planning changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

from vnetd.core import coexist
from vnetd.core import drift as d
from vnetd.core.actions import (
    Action,
    AddAddress,
    ChainEdits,
    DefineNetwork,
    EditNftables,
    PlugTap,
    RecordPort,
    ReinstallRules,
    RemoveNetwork,
    RestartNetwork,
    RestoreRules,
    SetAccepts,
    SetAutostart,
    SetBridge,
    SetSysctl,
    SetZone,
    StartDnsmasq,
    StartNetwork,
    UpdateDhcp,
    WriteGuard,
)
from vnetd.core.diff import Diff
from vnetd.core.model import (
    FIREWALL_OBJECT,
    Chain,
    Definition,
    Family,
    IfName,
    Libvirt,
    Observed,
    PortState,
    World,
    network_object,
)
from vnetd.core.policy import Policy
from vnetd.core.rules import iptables, nftables, repair

_NEW_MAC = "guests reach the host again when they have looked up its new MAC, up to 60 s"
_STP_WAIT = "STP holds the port back for twice the forward delay, 4 s at least"


def plan(
    policy: Policy,
    observed: Observed,
    found: Diff,
    remembered: Mapping[Chain, Sequence[str]] | None = None,
) -> tuple[Action, ...]:
    """Firewall first: it is what guests feel most, and libvirt cannot start a network without its
    chains. Links last: libvirt's actions make and remove them.
    """
    restarted = {
        item.network for item in found.drift if isinstance(item, d.LiveDiffers | d.BridgeMissing)
    }
    rules: list[Action] = list(_rules(observed, found, remembered or {}))
    rules += _nftables_rules(observed, found)
    rules += _guard(observed, found)
    rules += _sysctls(found)
    networks: list[Action] = []
    links: list[Action] = []
    for name in sorted(restarted):
        reasons = [
            d.text(item)
            for item in found.drift
            if isinstance(item, d.LiveDiffers | d.BridgeMissing) and item.network == name
        ]
        networks.append(
            RestartNetwork(
                objects=(network_object(name),),
                reason="; ".join(reasons),
                impact=_restart_impact(name, observed),
                network=name,
            )
        )
    for item in found.drift:
        if isinstance(item, _ELSEWHERE):
            continue
        if isinstance(item, d.DnsmasqDead) and item.network in restarted:
            continue
        if isinstance(item, coexist.AcceptsDiffer | coexist.ZoneDiffers):
            rules.append(_with_others(item))
            continue
        action = _action(item, policy, observed)
        if isinstance(action, SetBridge | AddAddress | PlugTap | RecordPort):
            if item.network not in restarted:
                links.append(action)
        else:
            networks.append(action)
    return (*rules, *sorted(networks, key=_rank), *links)


# Drift that is planned for by itself.
_OF_RULES = d.RulesDiffer | d.RulesLost | d.RulesLeftOver
_ELSEWHERE = _OF_RULES | d.GuardDiffers | d.SysctlDiffers | d.LiveDiffers | d.BridgeMissing

# Removing first frees names and subnets; a definition must be right before it is started.
_ORDER = (
    RemoveNetwork,
    DefineNetwork,
    SetAutostart,
    UpdateDhcp,
    RestartNetwork,
    StartNetwork,
    StartDnsmasq,
)


def _rank(action: Action) -> int:
    return next(at for at, kind in enumerate(_ORDER) if isinstance(action, kind))


def _action(
    item: d.Undefined
    | d.ConfigDiffers
    | d.DhcpDiffers
    | d.Stopped
    | d.AutostartDiffers
    | d.Unexpected
    | d.BridgeDiffers
    | d.AddressMissing
    | d.Unplugged
    | d.DnsmasqDead
    | d.Unrecorded,
    policy: Policy,
    observed: Observed,
) -> Action:
    objects, reason = (network_object(item.network),), d.text(item)
    match item:
        case d.Undefined() | d.ConfigDiffers():
            return DefineNetwork(
                objects=objects, reason=reason, policy=policy.networks[item.network]
            )
        case d.DhcpDiffers(add=add, remove=remove):
            return UpdateDhcp(
                objects=objects,
                reason=reason,
                impact="new connections wait up to 1 s while libvirt rewrites the network's rules",
                network=item.network,
                add=add,
                remove=remove,
            )
        case d.Stopped():
            return StartNetwork(objects=objects, reason=reason, network=item.network)
        case d.AutostartDiffers(want=want):
            return SetAutostart(objects=objects, reason=reason, network=item.network, on=want)
        case d.Unexpected():
            return RemoveNetwork(objects=objects, reason=reason, network=item.network)
        case d.DnsmasqDead(network=network):
            assert observed.libvirt is not None, "drift is found in an observation"
            live = observed.libvirt.networks[network].definition
            return StartDnsmasq(
                objects=objects,
                reason=reason,
                network=network,
                dns=live.dns,
                address=live.addresses[0].ip,
            )
        case d.BridgeDiffers(bridge=bridge, differences=differences):
            values = {difference.key: difference.want for difference in differences}
            return SetBridge(
                objects=objects,
                reason=reason,
                impact=_NEW_MAC if "mac" in values else "none",
                bridge=bridge,
                mac=values.get("mac"),
                mtu=int(values["mtu"]) if "mtu" in values else None,
                stp=values["stp"] == "on" if "stp" in values else None,
            )
        case d.AddressMissing(bridge=bridge, address=address):
            return AddAddress(objects=objects, reason=reason, bridge=bridge, address=address)
        case d.Unplugged(bridge=bridge, tap=tap, isolated=isolated):
            stp, safe = _stp(bridge, observed), _is_loop_free(bridge, observed)
            return PlugTap(
                objects=objects,
                reason=reason,
                impact=_STP_WAIT if stp and not safe else "none",
                tap=tap,
                bridge=bridge,
                isolated=isolated,
                pause_stp=stp and safe,
            )
        case d.Unrecorded(domain=domain, port=port, bridge=bridge):
            return RecordPort(
                objects=objects,
                reason=reason,
                network=item.network,
                domain=domain,
                port=port,
                bridge=bridge,
            )
        case _:
            assert_never(item)


def _rules(
    observed: Observed, found: Diff, remembered: Mapping[Chain, Sequence[str]]
) -> Sequence[RestoreRules]:
    ruleset, chains = observed.firewall, found.chains
    drift = [item for item in found.drift if isinstance(item, d.RulesDiffer)]
    lost = observed.libvirt is not None and observed.libvirt.lost_chains
    if ruleset is None or chains is None or not (drift or lost):
        return ()
    actions = []
    for family in Family:
        edited = tuple(
            ChainEdits(
                chain=chain,
                new=chain in iptables.PRIVATE_CHAINS and chain not in ruleset.chains,
                edits=tuple(
                    repair.edits(ruleset.chains.get(chain, ()), rules, remembered.get(chain, ()))
                ),
            )
            for chain, rules in sorted(chains.items())
            if chain.family is family
        )
        changed = tuple(chain for chain in edited if chain.edits or chain.new)
        if changed:
            of_family = [item for item in drift if item.chain.family is family]
            tables = sorted({chain.chain.table for chain in changed})
            actions.append(
                RestoreRules(
                    objects=tuple(sorted({network_object(item.network) for item in of_family})),
                    reason=f"rules differ in {', '.join(tables)}",
                    family=family,
                    chains=changed,
                )
            )
    return actions


def _sysctls(found: Diff) -> Sequence[SetSysctl]:
    """Each once, for all networks that need it, in the order of the first of them."""
    wanted: dict[tuple[str, str], list[d.SysctlDiffers]] = {}
    for item in found.drift:
        if isinstance(item, d.SysctlDiffers):
            wanted.setdefault((item.name, item.want), []).append(item)
    return [
        SetSysctl(
            objects=tuple(network_object(item.network) for item in items),
            reason=d.text(items[0]),
            name=name,
            value=value,
        )
        for (name, value), items in wanted.items()
    ]


def _guard(observed: Observed, found: Diff) -> Sequence[WriteGuard]:
    seen, table = observed.guard, found.guard
    if seen is None or table is None:
        return ()
    digests = {name: tuple(rule.digest for rule in rules) for name, rules in table.items()}
    changed = {
        name for name in {*digests, *seen.chains} if digests.get(name) != seen.chains.get(name)
    }
    if seen.held is None and not table:
        return ()
    if not changed and seen.mine:
        return ()
    drift = [item for item in found.drift if isinstance(item, d.GuardDiffers)]
    return (
        WriteGuard(
            objects=tuple(network_object(item.network) for item in drift),
            reason="rules differ" if changed else "nobody holds it",
            table=tuple(table.items()),
            chains=tuple(sorted(changed)),
        ),
    )


def _with_others(item: coexist.AcceptsDiffer | coexist.ZoneDiffers) -> SetAccepts | SetZone:
    objects = (network_object(item.network),)
    match item:
        case coexist.AcceptsDiffer():
            return SetAccepts(
                objects=objects,
                reason=str(item),
                place=item.place,
                add=item.missing,
                remove=item.unexpected,
                position=item.position + 1,
            )
        case coexist.ZoneDiffers():
            return SetZone(
                objects=objects,
                reason=str(item),
                network=item.network,
                bridge=item.bridge,
                zone=item.want,
            )
        case _:
            assert_never(item)


def _nftables_rules(observed: Observed, found: Diff) -> Iterator[Action]:
    """First what guests lack, as copies; then libvirt's own; then the copies and all else that is
    too many goes.
    """
    ruleset, libvirt = observed.firewall, observed.libvirt
    if ruleset is None or libvirt is None or ruleset.world is not World.NFTABLES:
        return
    lacking: dict[str, dict[Chain, repair.Flaws]] = {}
    delete: tuple[nftables.Surplus, ...] = ()
    reinstall = ""
    for item in found.drift:
        match item:
            case d.RulesDiffer(network=network, chain=chain, flaws=flaws):
                lacking.setdefault(network, {})[chain] = flaws
            case d.RulesLeftOver(rules=rules):
                delete = rules
            case d.RulesLost():
                reinstall = d.text(item)
            case _:
                pass
    if lacking or libvirt.lost_chains:
        yield EditNftables(
            objects=tuple(network_object(network) for network in sorted(lacking)),
            reason="rules are lacking" if lacking else "libvirt's chains are gone",
            what="put copies of lacking rules in place",
            script=nftables.script(
                _active(libvirt), ruleset, delete=delete, skeleton=True, lacking=lacking
            ),
        )
    elif delete:
        yield EditNftables(
            objects=(FIREWALL_OBJECT,),
            reason=f"libvirt does not delete them in {nftables.TABLE}",
            what=f"delete {len(delete)} rules that are left over",
            script=nftables.script((), ruleset, delete=delete, skeleton=False, lacking={}),
        )
    elif reinstall:
        yield ReinstallRules(
            objects=(FIREWALL_OBJECT,),
            reason=reinstall,
            scaffold=nftables.scaffold(_active(libvirt), ruleset),
        )


def _active(libvirt: Libvirt) -> list[Definition]:
    return [network.live for _, network in sorted(libvirt.networks.items()) if network.live]


def _restart_impact(network: str, observed: Observed) -> str:
    libvirt = observed.libvirt
    taps = [tap for tap in libvirt.taps if tap.network == network] if libvirt else []
    if not taps:
        return "none: no guest is on it"
    live = libvirt.networks[network].live if libvirt else None
    gap = "1 s" if live and live.stp is False else "6 s (STP)"
    guests = ", ".join(sorted({tap.domain for tap in taps}))
    return f"guests {guests} lose the network for about {gap}"


def _is_loop_free(bridge: IfName, observed: Observed) -> bool:
    """No port of the bridge is held back now. On libvirt's own bridges all ports are guests'."""
    ports = [link for link in (observed.links or {}).values() if link.master == bridge]
    return all(port.port_state is not PortState.BLOCKING for port in ports)


def _stp(bridge: IfName, observed: Observed) -> bool:
    link = (observed.links or {}).get(bridge)
    return link is not None and bool(link.stp)
