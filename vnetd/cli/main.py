"""vnetctl's command line: argv, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vnetd import __version__
from vnetd.api.names import LONGEST_PAUSE
from vnetd.cli.codes import FAILED, NOT_AUTHORISED, OK, UNREACHABLE
from vnetd.core.wording import counted
from vnetd.errors import BackendError, PolicyError

_CODES = """
exit codes:
  0  fine
  1  failed
  2  wrong usage
  3  drifted or degraded (status, plan); blocked (why)
  4  the daemon cannot be reached
  5  not authorised
"""


def main() -> int:
    arguments = parser().parse_args()
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (head, less) has seen enough; nothing must be flushed into its closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return OK if arguments.command == "watch" else FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        # Python would try again at its end, and say so in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"vnetctl: what it says cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "check":
        return _check(arguments.files, as_json=arguments.json)

    if arguments.command == "unmanaged":
        return _unmanaged(arguments.links, as_json=arguments.json)

    from vnetd.bus import sysbus  # the libraries take a tenth of a second: check does without
    from vnetd.cli import commands, edit

    command = {
        "status": commands.status,
        "plan": commands.plan,
        "reconcile": commands.reconcile,
        "reload": commands.reload,
        "history": commands.history,
        "metrics": commands.metrics,
        "why": commands.why,
        "leases": commands.leases,
        "import": commands.import_,
        "watch": commands.watch,
        "pause": commands.pause,
        "resume": commands.resume,
    }.get(arguments.command)
    try:
        return asyncio.run(command(arguments)) if command else edit.edit(arguments)
    except BackendError as error:
        print(f"vnetctl: {error}", file=sys.stderr)
        return FAILED
    except sysbus.BusError as error:
        print(f"vnetctl: {error}", file=sys.stderr)
        return UNREACHABLE
    except sysbus.RemoteError as error:
        if error.name in commands.UNREACHABLE_ERRORS:
            print("vnetctl: vnetd does not run; see: systemctl status vnetd", file=sys.stderr)
            return UNREACHABLE
        print(f"vnetctl: {error}", file=sys.stderr)
        return NOT_AUTHORISED if error.name in commands.REFUSED_ERRORS else FAILED


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="vnetctl",
        description="See and steer vnetd, which keeps libvirt's virtual networks alive.",
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"vnetctl {__version__}")
    whole.add_argument("--json", action="store_true", help="print JSON for programs")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, what: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        # Also behind the command; not given there, it must not undo the one before.
        command.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )
        return command

    add("status", "show the state of all networks, or of one").add_argument(
        "network", nargs="?", metavar="NETWORK", help="everything about this one"
    )
    add("plan", "show what a full pass would do, and what it would cost guests")
    add("reconcile", "run a full pass now")
    add("reload", "read the policy again")
    check = add("check", "check a policy; needs no daemon")
    check.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        type=Path,
        help="policy files, each a drop-in of the first; the installed policy if none is named",
    )
    add("edit", "change the policy in an editor; checked before it takes effect").add_argument(
        "--file",
        metavar="FILE",
        type=Path,
        help='take the text from there ("-": standard input) in place of an editor',
    )
    unmanaged = add(
        "unmanaged",
        "print what keeps NetworkManager and systemd-networkd off links; needs no daemon",
    )
    unmanaged.add_argument(
        "links", nargs="+", metavar="LINK", type=_link, help="a bridge, or its uplink"
    )
    history = add("history", "show what broke, who did it, and what was done")
    history.add_argument(
        "-n", "--lines", type=_number(1, sys.maxsize), metavar="N", help="only the last N records"
    )
    add("metrics", "print what monitoring counts, as OpenMetrics text")
    why = add("why", "show a guest's way to a destination, and what blocks it")
    why.add_argument("subject", metavar="NETWORK|GUEST")
    why.add_argument(
        "destination",
        nargs="?",
        default="",
        metavar="DESTINATION",
        help="an IP address; the default gateway if none is named",
    )
    why.add_argument(
        "--probe",
        action="store_true",
        help="also send packets from a guest made for it, and show where the kernel drops them; "
        "only root",
    )
    add("import", "print a policy that has this host's networks as they are")
    add("leases", "show the DHCP leases of all networks, or of one").add_argument(
        "network", nargs="?", default="", metavar="NETWORK", help="only this one's"
    )
    add("watch", "print drift and repairs as they happen")
    pause = add("pause", "change nothing for a while")
    pause.add_argument(
        "seconds",
        type=_number(1, LONGEST_PAUSE),
        metavar="SECONDS",
        help=f"from 1 to {LONGEST_PAUSE}",
    )
    add("resume", "end a pause")
    return whole


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        found = int(text)
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return found

    return number


def _link(text: str) -> str:
    from vnetd.core.policy.values import ifname

    try:
        return ifname(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'"{text}" {error}') from None


def _check(paths: list[Path], *, as_json: bool) -> int:
    from vnetd.backends import files
    from vnetd.backends.kernel import cards
    from vnetd.cli import render
    from vnetd.core import policy

    try:
        if paths:
            texts = [files.read_text(path) for path in paths]
        else:
            texts = files.read_policy(files.DEFAULT_CONFIG)
        found = policy.parse(texts, is_wireless=cards.wireless_uplink)
    except PolicyError as error:
        if as_json:
            render.print_json([render.problem(problem) for problem in error.problems])
        else:
            for problem in error.problems:
                print(problem, file=sys.stderr)
        return FAILED
    if as_json:
        render.print_json([])
    elif texts:
        bridges = f" and {counted(len(found.bridges), 'bridge')}" if found.bridges else ""
        networks = counted(len(found.networks), "network")
        print(f"fine: {networks}{bridges} in {counted(len(texts), 'file')}")
    else:
        print(f"there is no policy at {files.DEFAULT_CONFIG}: vnetd protects what libvirt has")
    return OK


def _unmanaged(links: list[str], *, as_json: bool) -> int:
    from vnetd.backends.kernel import managers
    from vnetd.cli import render

    wanted = managers.unmanaged(links)
    if as_json:
        render.print_json(wanted)
    else:
        print("\n".join(f"# {path}\n{text}" for path, text in wanted.items()), end="")
    return OK


if __name__ == "__main__":
    sys.exit(main())
