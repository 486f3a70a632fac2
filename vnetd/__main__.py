"""vnetd's command line: argv, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import sys
import time
from pathlib import Path

from vnetd import __version__, journal
from vnetd.backends.files import DEFAULT_CONFIG
from vnetd.errors import VnetdError, is_want_of_files

# systemd starts it again at once, which is good after a crash only.
_AGAIN_SECONDS = 2.0


def main() -> int:
    faulthandler.enable()  # of a crash in a C library: which call of whose it was
    arguments = parser().parse_args()
    journal.set_up(arguments.log_level)
    state = Path(os.environ.get("STATE_DIRECTORY", "/var/lib/vnetd"))
    runtime = Path(os.environ.get("RUNTIME_DIRECTORY", "/run/vnetd"))
    config = arguments.config.absolute()
    if arguments.check_environment:
        return _check_environment(config, arguments.connect, state, runtime, arguments.json)

    from vnetd import daemon  # after argparse: --help must not wait for the libraries

    options = daemon.Options(
        config=config,
        connect=arguments.connect,
        observe=arguments.observe,
        state=state,
        runtime=runtime,
    )
    code = 0
    try:
        asyncio.run(daemon.run(options))
    except* VnetdError as errors:
        code = 1
        for error in errors.exceptions:
            print(f"vnetd: {error}", file=sys.stderr)
    except* OSError as errors:
        few, others = errors.split(lambda e: isinstance(e, OSError) and is_want_of_files(e))
        if others is not None or few is None:
            raise
        code = 1
        print("vnetd: may open too few files: raise LimitNOFILE= (ulimit -n)", file=sys.stderr)
    if code and "NOTIFY_SOCKET" in os.environ:
        time.sleep(_AGAIN_SECONDS)
    return code


def _check_environment(
    config: Path, connect: str, state: Path, runtime: Path, as_json: bool
) -> int:
    try:
        from vnetd import environment
    except ImportError as error:  # what the check is to find must not hide it
        print(
            f"vnetd: a Python library is missing, so vnetd does not start: {error}", file=sys.stderr
        )
        return 1
    host = environment.Host(config, connect, state, runtime)
    findings = asyncio.run(environment.look(host))
    print(environment.render_json(findings) if as_json else environment.render(findings))
    return int(any(item.found is environment.Found.MISSING for item in findings))


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="vnetd", description="Keep libvirt's virtual networks alive."
    )
    whole.add_argument("--version", action="version", version=f"vnetd {__version__}")
    whole.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=DEFAULT_CONFIG,
        help="the policy; its drop-ins are in FILE.d/ (default: %(default)s)",
    )
    whole.add_argument(
        "--connect",
        metavar="URI",
        default="qemu:///system",
        help="the libvirt to keep (default: %(default)s)",
    )
    whole.add_argument("--observe", action="store_true", help="report drift, change nothing")
    whole.add_argument(
        "--check-environment",
        action="store_true",
        help="say what of the host is missing, and what is off because of it; exit status 1 if so",
    )
    whole.add_argument("--json", action="store_true", help="with --check-environment: print JSON")
    whole.add_argument(
        "--log-level",
        metavar="LEVEL",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="debug, info, warning or error (default: %(default)s)",
    )
    return whole


if __name__ == "__main__":
    sys.exit(main())
