"""Which tool leads a link, as its own files say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from vnetd.backends.kernel import cards, managers
from vnetd.backends.kernel.managers import Managers
from vnetd.core.model import IfName

BR0 = IfName("br0")


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def owner(root: Path, index: int | None = 7) -> str:
    found = asyncio.run(Managers(root).owners({BR0: index}))
    return f"{found['br0']}: {found['br0'].cure}" if found else ""


def test_nobody(tmp_path: Path) -> None:
    assert owner(tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "led"),
    [
        ("[device]\nmanaged=true\nconnection-uuid=abc\nnm-owned=true\n", True),
        ("[device]\nmanaged=true\nconnection-uuid=abc\n", True),
        ("[device]\nmanaged=true\nconnection-uuid=abc\nnm-owned=false\n", False),
        ("[device]\nmanaged=true\n", False),
        ("[device]\nmanaged=false\nconnection-uuid=abc\n", False),
        ("\x00\x01 not a keyfile", False),
    ],
)
def test_network_manager(tmp_path: Path, text: str, *, led: bool) -> None:
    """With virtual links that others made it only goes along, by a profile of its own making."""
    write(tmp_path, "run/NetworkManager/devices/7", text)
    assert owner(tmp_path).startswith("NetworkManager (profile abc)") is led
    assert owner(tmp_path, index=8) == ""


def test_network_manager_is_asked_of_links_that_it_has_not_made() -> None:
    """It watches lo and virbr1, and leads virbr0 by an admin's profile."""
    flags = {"lo": 220, "virbr1": 253, "mine": 13}
    active = {
        f"/org/freedesktop/NetworkManager/ActiveConnection/{at}": {
            "org.freedesktop.NetworkManager.Connection.Active": {
                "Id": {"type": "s", "data": name},
                "Uuid": {"type": "s", "data": f"uuid of {name}"},
                "StateFlags": {"type": "u", "data": flag},
            }
        }
        for at, (name, flag) in enumerate(flags.items())
    }
    device = {"org.freedesktop.NetworkManager.Device": {"Interface": {"type": "s", "data": "lo"}}}
    objects = {"/org/freedesktop/NetworkManager/Devices/1": device, **active}
    said = json.dumps({"type": "a{oa{sa{sv}}}", "data": [objects]})
    assert managers.nm_led(said) == {"uuid of mine": "mine"}


def test_systemd_networkd(tmp_path: Path) -> None:
    state = "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/lan.network\n"
    write(tmp_path, "run/systemd/netif/links/7", state)
    assert "write Unmanaged=yes under [Link] in /etc/systemd/network/lan.network" in owner(tmp_path)
    write(tmp_path, "run/systemd/netif/links/7", "ADMIN_STATE=unmanaged\n")
    assert owner(tmp_path) == ""
    write(tmp_path, "etc/systemd/network/br.netdev", "[NetDev]\nName=br0\nKind=bridge\n")
    assert "remove /etc/systemd/network/br.netdev" in owner(tmp_path, index=None)


def test_netplan(tmp_path: Path) -> None:
    text = (
        "network:\n"
        "  version: 2\n"
        "  ethernets:\n"
        "    eth0: {}\n"
        "  bridges:\n"
        '    "br0":  # the LAN\n'
        "      interfaces: [eth0]\n"
        "      addresses:\n"
        "        - 192.0.2.1/24\n"
    )
    write(tmp_path, "etc/netplan/50-cloud-init.yaml", text)
    assert owner(tmp_path).startswith("netplan (/etc/netplan/50-cloud-init.yaml:6)")
    assert list(managers.netplan_lines(text)) == [("eth0", 4), ("br0", 6)]
    (tmp_path / "etc/netplan/50-cloud-init.yaml").unlink()  # as if vnetd might not read it
    made = "ADMIN_STATE=configured\nNETWORK_FILE=/run/systemd/network/10-netplan-br0.network\n"
    write(tmp_path, "run/systemd/netif/links/7", made)
    assert "remove br0 from the files in /etc/netplan" in owner(tmp_path)


def test_ifupdown(tmp_path: Path) -> None:
    write(
        tmp_path,
        "etc/network/interfaces",
        "# the usual\nsource interfaces.d/*\nauto lo\niface lo inet loopback\n",
    )
    write(
        tmp_path,
        "etc/network/interfaces.d/lan",
        "auto br0 \\\n  eth0\n\niface eth0 inet manual\niface br0 inet static\n"
        "    address 192.0.2.1/24\n    bridge-ports eth0\n",
    )
    assert owner(tmp_path).startswith("ifupdown (/etc/network/interfaces.d/lan:5)")
    assert asyncio.run(Managers(tmp_path).owners({IfName("eth0"): 2})) == {}


def test_a_stanza_without_ports_is_no_bridge(tmp_path: Path) -> None:
    write(tmp_path, "etc/network/interfaces", "auto br0\niface br0 inet dhcp\n")
    assert owner(tmp_path) == ""


def test_pci_paths_and_wireless_cards(tmp_path: Path) -> None:
    device = tmp_path / "devices/pci0000:00/0000:00:1c.0/0000:03:00.0/virtio1"
    card = tmp_path / "net/wlan0"
    for path in (device, card / "phy80211", tmp_path / "net/eth0"):
        path.mkdir(parents=True)
    (card / "device").symlink_to(device)
    (card / "address").write_text("52:54:00:00:00:07\n")
    links = tmp_path / "net"
    assert cards.pci_path("wlan0", links) == "pci-0000:03:00.0"
    assert cards.pci_path("eth0", links) == ""
    for uplink in ("wlan0", "pci-0000:03:00.0", "52:54:00:00:00:07"):
        assert cards.wireless_uplink(uplink, links)
    assert not cards.wireless_uplink("eth0", links)
    assert not cards.wireless_uplink("52:54:00:00:00:08", links)
