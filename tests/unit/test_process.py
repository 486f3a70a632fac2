from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from vnetd.backends import process
from vnetd.errors import BackendError


def test_ancestors_are_named_nearest_first() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None, "stdin is a pipe"
        assert child.stdout is not None, "stdout is a pipe"
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()  # it runs: before that it may still have its parent's name
        found = process.ancestors(child.pid, "cat")
        child.stdin.close()
    assert found is not None
    assert found[0] == f"{process.name_of(os.getpid())}[{os.getpid()}]"


def test_a_pid_that_belongs_to_another_process_is_nobodys() -> None:
    assert process.ancestors(os.getpid(), "something-else") is None
    assert process.ancestors(2**22 + 1, "gone") is None


def test_a_tool_that_fails_says_why() -> None:
    with pytest.raises(BackendError, match="cat: /nowhere: No such file"):
        asyncio.run(process.run(["cat", "/nowhere"]))
    with pytest.raises(BackendError, match="no-such-tool: No such file or directory"):
        asyncio.run(process.run(["no-such-tool"]))
    assert asyncio.run(process.run(["cat"], "through")) == "through"
