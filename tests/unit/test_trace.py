"""The kernel's traces, as nft monitor prints them."""

from __future__ import annotations

from vnetd.backends.trace import Traced, parse

TEXT = """\
trace id 9438c8e2 inet vnetd_probe_7 from packet: iif "vblab" ip saddr 10.77.0.254 udp dport 53
trace id 9438c8e2 inet vnetd_probe_7 from rule iifname "vblab" meta nftrace set 1 (verdict continue)
trace id 9438c8e2 inet vnetd_probe_7 from verdict continue
trace id 9438c8e2 inet vnetd_probe_7 from policy accept
trace id 9438c8e2 ip filter INPUT packet: iif "vblab" ip saddr 10.77.0.254
trace id 9438c8e2 ip filter INPUT unknown rule handle 12 (verdict drop)
trace id 11111111 inet fw f packet: iif "vblab" tcp dport 443
trace id 11111111 inet fw f policy drop
noise
"""


def test_a_drop_is_found_with_its_rule_or_policy() -> None:
    assert parse(TEXT.splitlines()) == [
        Traced(
            'iif "vblab" ip saddr 10.77.0.254 udp dport 53',
            ("inet vnetd_probe_7 from", "ip filter INPUT"),
            ("ip", "filter", "INPUT", "unknown rule handle 12", 12),
        ),
        Traced('iif "vblab" tcp dport 443', ("inet fw f",), ("inet", "fw", "f", "policy drop", 0)),
    ]
