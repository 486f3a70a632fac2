"""vnetd --check-environment names what a host lacks, and what is off because of it."""

from __future__ import annotations

import json
import signal

import pytest

from tests.lab.hypervisor import Hypervisor

# The box has no journald; whether polkit can be started depends on the machine around it.
NOT_IN_THE_BOX = {"journal"}


def check(box: Hypervisor, *under: str) -> tuple[dict[str, dict[str, str]], int]:
    """As the service, but for what under changes."""
    return asked(box, *box.as_service(*under, *vnetd(box)))


def vnetd(box: Hypervisor) -> tuple[str, ...]:
    return box.tool("vnetd"), "--check-environment", "--json"


def asked(box: Hypervisor, *argv: str) -> tuple[dict[str, dict[str, str]], int]:
    done = box.attempt(*argv)
    assert done.stdout, done.stderr
    findings = {item["name"]: item for item in json.loads(done.stdout)}
    assert all(item["off"] for item in findings.values() if item["found"] == "missing")
    return findings, done.returncode


def missing(findings: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, item in findings.items() if item["found"] == "missing"} - {"polkit"}


def test_a_whole_host(box: Hypervisor) -> None:
    rules = box.rules()
    with box.watching_nftables() as writers:
        findings, code = check(box)
        assert writers() == [], "looking changes nothing"
    assert missing(findings) == NOT_IN_THE_BOX
    assert code == 1
    assert findings["libvirt"]["text"].startswith("qemu:///system, version ")
    assert findings["iptables-legacy"]["found"] == "unused"
    assert box.rules() == rules


@pytest.mark.parametrize(
    ("under", "expected"),
    [
        (
            ("setpriv", "--ambient-caps=-all", "--inh-caps=-all"),
            {"CAP_NET_ADMIN", "kernel notifications", "nf_tables", "table flags owner, persist"},
        ),
        (("env", "PATH=/nowhere"), {"nft", "iptables (nf_tables)", "ip", "busctl"}),
        (("env", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nowhere"), {"system bus"}),
    ],
)
def test_what_is_missing_is_named(
    box: Hypervisor, under: tuple[str, ...], expected: set[str]
) -> None:
    findings, code = check(box, *under)
    assert expected <= missing(findings), findings
    assert code == 1


def test_what_another_user_lacks_is_named(box: Hypervisor) -> None:
    findings, code = asked(box, "setpriv", "--reuid", "65534", "--clear-groups", *vnetd(box))
    lacks = {"CAP_NET_ADMIN", "/proc/sys/net", "libvirt", "runtime directory"}
    assert lacks <= missing(findings), findings
    assert code == 1


def test_a_policy_with_mistakes_and_a_dead_libvirtd(box: Hypervisor) -> None:
    box.write("/etc/vnetd/vnetd.toml.d/bad.toml", "[networks.lab]\nmode = 'natt'\n")
    box.kill("libvirtd", signal.SIGKILL)
    try:
        findings, _ = check(box)
        assert missing(findings) == {*NOT_IN_THE_BOX, "libvirt", "policy"}
        assert "bad.toml:2" in findings["policy"]["text"]
        said = box.attempt(*vnetd(box)[:-1]).stdout
        assert "missing  libvirt: " in said
        assert "         off: a changed policy: the one before stays in force" in said
    finally:
        box.run("rm", "/etc/vnetd/vnetd.toml.d/bad.toml")
        box.start_libvirtd()
