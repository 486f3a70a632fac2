"""The shells' completions know every command and option of the parsers, and run no name."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import vnetd.__main__
import vnetd.cli.main

TREE = Path(__file__).parents[2]
PARSERS = {"vnetd": vnetd.__main__.parser, "vnetctl": vnetd.cli.main.parser}


def completions(shell: str, program: str) -> str:
    command = [str(TREE / "packaging/completions"), shell, program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def words(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (flag.lstrip("-") for flag in action.option_strings)
        yield from action.choices or ()
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from words(command)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PARSERS)
def test_all_words_of_the_parser_are_in(shell: str, program: str) -> None:
    said = {word.strip("-") for word in re.findall(r"[\w-]+", completions(shell, program))}
    assert set(words(PARSERS[program]())) <= said


def complete(tmp_path: Path, program: str, *line: str) -> list[str]:
    """What bash offers for the last word."""
    script = f"""{completions("bash", program)}
        COMP_WORDS=("$@") COMP_CWORD={len(line)}
        _{program}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = ["bash", "-c", script, "bash", program, *line]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tmp_path, env={"PATH": path}
    )
    return done.stdout.split("\n")[:-1]


def test_bash_completes_commands_options_and_their_values(tmp_path: Path) -> None:
    assert complete(tmp_path, "vnetctl", "re") == ["reconcile", "reload", "resume"]
    assert complete(tmp_path, "vnetctl", "why", "--p") == ["--probe"]
    assert complete(tmp_path, "vnetd", "--log-level", "") == ["debug", "info", "warning", "error"]
    (tmp_path / "new.toml").touch()
    assert complete(tmp_path, "vnetctl", "check", "ne") == ["new.toml"]
    assert complete(tmp_path, "vnetd", "--config", "ne") == ["new.toml"]


def test_bash_completes_networks_and_runs_none_of_them(tmp_path: Path) -> None:
    stub = tmp_path / "vnetctl"
    stub.write_text("#!/bin/sh\nprintf '%s\\n' converged 'NETWORK  STATE' 'lab  x' '$(>ran)  x'\n")
    stub.chmod(0o755)
    assert complete(tmp_path, "vnetctl", "status", "l") == ["lab"]
    assert complete(tmp_path, "vnetctl", "status", "$") == ["\\$\\(\\>ran\\)"]
    assert not (tmp_path / "ran").exists()
