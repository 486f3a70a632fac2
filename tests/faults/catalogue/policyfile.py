"""The policy."""

from __future__ import annotations

import time

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host

_FILE = "/etc/vnetd/vnetd.toml"
_PUT_BACK = f"rm -f {_FILE}; cp /run/box/good {_FILE}"


def slowly(host: Host) -> None:
    """In five parts, with an editor's files beside it; then by another file of that name."""
    box = host.box
    said = len(box.log("vnetd"))
    size = len(box.run("cat", _FILE).encode()) // 5 + 1
    host.run(f"""
        cp {_FILE} /run/box/good
        cd /etc/vnetd; echo 'b0VIM 9' >.vnetd.toml.swp; echo nonsense >vnetd.toml~
        (for n in 1 2 3 4 5; do
            tail -c +$((1 + (n - 1) * {size})) /run/box/good | head -c {size}; sleep 0.3
        done) >{_FILE}
        rm .vnetd.toml.swp vnetd.toml~
        cmp {_FILE} /run/box/good
        cp /run/box/good new; mv new {_FILE}
        vnetctl reload
    """)
    assert "policy: " not in box.log("vnetd")[said:], "a part of it was taken for the whole"


def reloads(host: Host) -> None:
    """200 in 10 s, each with another text."""
    box = host.box
    said, began = len(box.log("vnetd")), time.monotonic()
    pid = box.pid("vnetd")
    host.run(f"""
        cp {_FILE} /run/box/good
        for n in $(seq 200); do
            sed "s/10.77.0.99/10.77.0.$((99 + n % 100))/" /run/box/good >{_FILE}
            kill -HUP {pid}
            sleep 0.05
        done
        cp /run/box/good {_FILE}
    """)
    applied = box.log("vnetd")[said:].count("INFO: define network lab")
    seconds = time.monotonic() - began
    print(f"applied {applied} times in {seconds:.0f} s")
    assert applied <= 2 * seconds


def refused(id_: str, what: str, script: str, told: str) -> Fault:
    good = f"cp {_FILE} /run/box/good; rm -f {_FILE}"
    return Fault(
        id_,
        what,
        f"{good}; {script}; fails vnetctl reload",
        Outcome.NAMED,
        told=told,
        undo=_PUT_BACK,
        long=True,
    )


FAULTS = (
    Fault(
        "policy-broken",
        "the policy gets a mistake",
        "cp /etc/vnetd/vnetd.toml /run/box/good; echo 'nonsense =' >>/etc/vnetd/vnetd.toml",
        Outcome.NAMED,
        told="vnetd.toml",
        undo="cat /run/box/good >/etc/vnetd/vnetd.toml",
        long=True,
    ),
    Fault(
        "policy-open",
        "anybody may write the policy",
        "chmod o+w /etc/vnetd/vnetd.toml; echo >>/etc/vnetd/vnetd.toml",
        Outcome.NAMED,
        told="written by anybody",
        undo="chmod o-w /etc/vnetd/vnetd.toml; echo >>/etc/vnetd/vnetd.toml",
        long=True,
    ),
    Fault(
        "policy-gone",
        "the policy is deleted",
        "mv /etc/vnetd/vnetd.toml /run/box/good",
        Outcome.NAMED,
        told="is gone",
        undo="cat /run/box/good >/etc/vnetd/vnetd.toml",
    ),
    refused("policy-empty", "the policy is emptied", f": >{_FILE}", "is empty"),
    refused(
        "policy-overlap",
        "two networks of the policy have the same addresses",
        f"""cat /run/box/good >{_FILE}
        printf '[networks.x]\nmode = "nat"\naddresses = ["10.77.0.129/25"]\n' >>{_FILE}""",
        "overlap",
    ),
    refused("policy-fifo", "a FIFO in place of the policy", f"mkfifo {_FILE}", "vnetd.toml"),
    refused(
        "policy-link",
        "a link to a user's own file in place of the policy",
        f"install -o alice /run/box/good /run/box/alices; ln -s /run/box/alices {_FILE}",
        "vnetd.toml",
    ),
    refused(
        "policy-large",
        "a policy of 10 MB",
        f"(cat /run/box/good; head -c 10000000 /dev/zero | tr '\\0' '#') >{_FILE}",
        "larger than",
    ),
    refused(
        "policy-latin-1",
        "a policy that is not UTF-8",
        f"(cat /run/box/good; printf '# \\351\n') >{_FILE}",
        "UTF-8",
    ),
    Fault(
        "policy-slowly",
        "the policy is written in five parts, then replaced, beside an editor's files",
        slowly,
        Outcome.UNTOUCHED,
        long=True,
    ),
    Fault(
        "policy-reloads",
        "twenty policies a second for ten seconds",
        reloads,
        long=True,
    ),
)
