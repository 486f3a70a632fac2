"""./dev lab: a fresh hypervisor in a box with vnetd on it, and a shell inside."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys

from tests.lab.hypervisor import BIN, Hypervisor

WELCOME = """\
This is a hypervisor in a box: its own network, mounts and processes. All of it goes when you leave.
  virsh, iptables, nft, busctl     as on any hypervisor
  vnetctl status                   vnetd runs; its policy is /etc/vnetd/vnetd.toml
  ip netns exec wan …              the host behind the uplink, 198.51.100.2
  tail -f /run/box/vnetd.log       what vnetd says"""


def main() -> int:
    with Hypervisor() as box:
        box.start_vnetd()
        print(WELCOME)
        # Ctrl-C is for what runs in the shell.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return subprocess.run(shell_argv(box)).returncode


def shell_argv(box: Hypervisor) -> list[str]:
    term = f"TERM={os.environ.get('TERM', 'linux')}"
    path = f"PATH={BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return box.argv("env", term, path, "PS1=box# ", "sh", "-i")


def open_shell_hint(box: Hypervisor) -> None:
    print("\nThe box stays up. Step inside from another terminal with:\n")
    print(f"  {shlex.join(shell_argv(box))}\n\nCtrl-C here takes it down.", flush=True)


def wait_for_end() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
