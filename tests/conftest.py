"""What all lanes share: a failed test shows what the processes in its box said."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.machine import Machine

_LAST_LINES = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    box = getattr(item, "funcargs", {}).get("box")
    if report.failed and isinstance(box, Machine):
        for name, log in box.logs().items():
            report.sections.append((name, "\n".join(log.splitlines()[-_LAST_LINES:])))
    return report


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """No test may leave a thread or a task behind."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(1)  # asyncio's own, which waited for a child, is about to end
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not left, f"threads left behind: {left}"
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return  # no loop runs
    assert not tasks, f"tasks left behind: {tasks}"
