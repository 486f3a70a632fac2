"""Names and XML that are there to do harm where somebody takes them for something else."""

from __future__ import annotations

import unicodedata

from tests.faults.catalogue.callers import with_polkit
from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host

_NETWORKS = ("$(reboot)", "..", "-rf", "a\u202eb", "`id`;'\"", "n" * 200)
_LINKS = ("a;b", "-a", "a\x1b[2J", "*", "$(id)", 'a"b')
_MEGABYTE = 1 << 20


def assert_harmless(host: Host) -> None:
    """Of what is printed nothing is taken for a command by a terminal."""
    for text in (*(host.box.vnetctl(word).stdout for word in ("status", "plan", "history")),):
        kinds = {unicodedata.category(character) for character in text if character != "\n"}
        assert not kinds & {"Cc", "Cf", "Zl", "Zp"}, text
    assert not host.box.succeeds("test", "-e", "/tmp/owned")
    assert "\x1b" not in host.box.log("vnetd")
    assert host.box.succeeds("busctl", "--system", "--list", "tree", "org.vnetd1")


def is_up(host: Host, link: str) -> bool:
    return f" {link}: <" in host.box.run("ip", "-o", "link", "show", "up")


def networks(host: Host) -> None:
    box = host.box
    for number, name in enumerate(_NETWORKS):
        text = name.replace("&", "&amp;").replace("<", "&lt;")
        bridge = (
            f"<bridge name='vbx{number}' stp='off'/><ip address='10.92.{number}.1' prefix='24'/>"
        )
        xml = f"<network><name>{text}</name>{bridge}</network>"
        box.run("virsh", "-q", "net-create", "/dev/stdin", stdin=xml)
    box.wait_until(
        lambda: set(_NETWORKS) <= {n["Name"] for n in box.vnetctl_json("status")["Networks"]},
        what="vnetd sees them",
    )
    box.sh("ip link set vbx0 down; ip link set vbx3 down")
    box.wait_until(lambda: is_up(host, "vbx0") and is_up(host, "vbx3"), what="both bridges")
    box.wait_for_state("converged")
    assert_harmless(host)
    for name in _NETWORKS:
        box.run("virsh", "-q", "net-destroy", "--", name)


def links(host: Host) -> None:
    box = host.box
    for name in _LINKS:
        box.run("ip", "link", "add", "name", name, "type", "bridge")
        box.run("ip", "link", "set", "dev", name, "up")
    box.run("ip", "link", "set", "dev", host.tap, "master", _LINKS[2])
    box.wait_until(host.is_plugged, what="the tap")
    box.wait_for_state("converged")
    assert_harmless(host)
    for name in _LINKS:
        box.run("ip", "link", "del", "dev", name)


def xml(host: Host) -> None:
    """What libvirt lets through of it."""
    box = host.box
    entities = '<!DOCTYPE n [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    note = f"<x:note xmlns:x='urn:x'><![CDATA[</network>{'x' * _MEGABYTE}]]></x:note>"
    for head, body in ((entities, "&b;"), ("", note), ("<?xml version='1.0' encoding='l1'?>", "é")):
        data = f"{head}<network><name>odd</name><metadata>{body}</metadata></network>"
        box.write("/run/box/odd.xml", data)
        box.attempt("virsh", "-q", "net-define", "/run/box/odd.xml")
        assert box.vnetctl("reconcile").returncode == 0
        assert_harmless(host)
        box.attempt("virsh", "-q", "net-undefine", "odd")


FAULTS = (
    Fault(
        "network-names",
        "networks with names that mean something to a shell or a terminal; two of their bridges"
        " go down",
        networks,
        host=with_polkit,
    ),
    Fault(
        "link-names",
        "links with such names; one of them takes the tap",
        links,
        host=with_polkit,
        long=True,
    ),
    Fault(
        "network-xml",
        "networks with a DTD, a megabyte of metadata, another encoding",
        xml,
        Outcome.UNTOUCHED,
        host=with_polkit,
        long=True,
    ),
)
