"""vnetd's command line: argv, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from vnetd import __version__, journal
from vnetd.backends.files import DEFAULT_CONFIG
from vnetd.errors import VnetdError


def main() -> int:
    arguments = parser().parse_args()
    journal.set_up(arguments.log_level)

    from vnetd import daemon  # after argparse: --help must not wait for the libraries

    options = daemon.Options(
        config=arguments.config.absolute(),
        connect=arguments.connect,
        observe=arguments.observe,
        state=Path(os.environ.get("STATE_DIRECTORY", "/var/lib/vnetd")),
        runtime=Path(os.environ.get("RUNTIME_DIRECTORY", "/run/vnetd")),
    )
    code = 0
    try:
        asyncio.run(daemon.run(options))
    except* VnetdError as errors:
        code = 1
        for error in errors.exceptions:
            print(f"vnetd: {error}", file=sys.stderr)
    return code


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
        "--log-level",
        metavar="LEVEL",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="debug, info, warning or error (default: %(default)s)",
    )
    return whole


if __name__ == "__main__":
    sys.exit(main())
