"""polkit's question for a password, asked on this terminal."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_TOOL = "pkttyagent"


@asynccontextmanager
async def on_terminal() -> AsyncIterator[None]:
    """Meanwhile polkit can ask here on behalf of this process, unless a desktop's agent does."""
    if shutil.which(_TOOL) is None:
        yield
        return
    ready, notify = os.pipe()
    words = ("--fallback", "--process", str(os.getpid()), "--notify-fd", str(notify))
    agent = await asyncio.create_subprocess_exec(_TOOL, *words, pass_fds=[notify])
    os.close(notify)
    try:
        await asyncio.to_thread(os.read, ready, 1)  # closed when polkit knows it, or it has failed
        yield
    finally:
        os.close(ready)
        with suppress(ProcessLookupError):
            agent.terminate()
        await agent.wait()
