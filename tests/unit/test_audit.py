"""Records in the form of the kernel's __audit_log_nfcfg()."""

from __future__ import annotations

import struct

import pytest

from vnetd.backends.firewalls import audit
from vnetd.core.model import Cause

STAMP = "audit(1764028801.123:87): "
LEGACY = 'table=nat family=2 entries=8 op=xt_replace pid=412 subj=unconfined comm="iptables-legacy"'


def record(text: str, kind: int = 1325) -> bytes:
    data = (STAMP + text).encode()
    return struct.pack("=IHHII", 16 + len(data), kind, 0, 0, 0) + data


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (LEGACY, Cause("iptables-legacy", 412)),
        # a kernel without a security module
        (LEGACY.replace(" subj=unconfined", ""), Cause("iptables-legacy", 412)),
        (LEGACY.replace("family=2", "family=10"), Cause("iptables-legacy", 412)),
        (LEGACY.replace('"iptables-legacy"', "6D7920746F6F6C"), Cause("my tool", 412)),
        # ebtables, nf_tables
        (LEGACY.replace("family=2", "family=7"), None),
        ('table=nat:3 family=2 entries=1 op=nft_register_rule pid=9 comm="nft"', None),
        ("nonsense", None),
    ],
)
def test_the_writer_of_a_legacy_table(text: str, cause: Cause | None) -> None:
    assert audit.writer(record(text)) == cause


def test_other_records_are_not_read() -> None:
    assert audit.writer(record(LEGACY, kind=1300)) is None
    assert audit.writer(record(LEGACY)[:12]) is None
    assert audit.writer(b"") is None
