"""Who changes iptables-legacy: the kernel tells its audit, and that only where it has begun."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.vm import Vm

# linux/audit.h: AUDIT_SET of struct audit_status, what auditctl -e 1 and -e 0 send
SET_AUDIT = """
import socket, struct, sys
status = struct.pack("=11I", 1, int(sys.argv[1]), *[0] * 9)
audit = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)
audit.send(struct.pack("=IHHII", 16 + len(status), 1001, 5, 1, 0) + status)
kind, error = struct.unpack_from("=4xH10xi", audit.recv(8192))
assert (kind, error) == (2, 0), (kind, error)
"""


@pytest.fixture
def on_legacy(vm: Vm) -> Iterator[Vm]:
    """With vnetd's drop-in for it, and with audit on."""
    drop_in = "/etc/systemd/system/vnetd.service.d"
    vm.run("python3", "-", "1", stdin=SET_AUDIT)
    vm.move(
        "iptables-legacy",
        f"""
        {alternatives("legacy")}
        mkdir -p {drop_in}
        sed 's/^#\\([A-Z]\\)/\\1/' /usr/share/doc/vnetd/iptables-legacy.conf >{drop_in}/t.conf
        systemctl daemon-reload
        """,
    )
    yield vm
    vm.run("python3", "-", "0", stdin=SET_AUDIT)
    vm.move(
        "iptables (nf_tables)",
        f"{alternatives('nft')}; rm -r {drop_in}; systemctl daemon-reload",
    )


def alternatives(variant: str) -> str:
    """libvirt's own rules and chains do not move with them."""
    clear = "; ".join(
        f"iptables -t {t} -F; iptables -t {t} -X" for t in ("filter", "nat", "mangle")
    )
    one = "update-alternatives --set $tool /usr/sbin/$tool-"
    return f"{clear}; for tool in iptables ip6tables; do {one}{variant}; done"


def test_audit_tells_at_once_who_has_changed_iptables_legacy(box: Vm, on_legacy: Vm) -> None:
    right = box.rules()
    assert "LIBVIRT_PRT" in right
    for damage in ("iptables -t nat -F", "iptables -F; iptables -X", "iptables -D INPUT 1"):
        record = box.healed(damage)[0]
        print(f"{damage}: {record['ms']} ms, by {record['cause']}")
        assert box.rules() == right
        assert record["cause"]["process"] == "iptables"
        assert record["cause"]["pid"] > 1
