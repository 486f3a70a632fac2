"""The policy."""

from __future__ import annotations

from tests.faults.fault import Fault, Outcome

FAULTS = (
    Fault(
        "policy-broken",
        "the policy gets a mistake",
        "cp /etc/vnetd/vnetd.toml /run/box/good; echo 'nonsense =' >>/etc/vnetd/vnetd.toml",
        Outcome.NAMED,
        told="vnetd.toml",
        undo="cat /run/box/good >/etc/vnetd/vnetd.toml",
    ),
    Fault(
        "policy-open",
        "anybody may write the policy",
        "chmod o+w /etc/vnetd/vnetd.toml; echo >>/etc/vnetd/vnetd.toml",
        Outcome.NAMED,
        told="written by anybody",
        undo="chmod o-w /etc/vnetd/vnetd.toml; echo >>/etc/vnetd/vnetd.toml",
    ),
    Fault(
        "policy-gone",
        "the policy is deleted",
        "mv /etc/vnetd/vnetd.toml /run/box/good",
        Outcome.NAMED,
        told="is gone",
        undo="cat /run/box/good >/etc/vnetd/vnetd.toml",
    ),
)
