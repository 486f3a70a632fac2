"""Work that takes longer than a call may: each has an object on the bus until it is done."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from vnetd.api import names
from vnetd.api.objects import JobStatus
from vnetd.api.tree import Emit, Tree, marshal
from vnetd.core.status import Status
from vnetd.errors import VnetdError
from vnetd.reconcile import Progress

log = logging.getLogger(__name__)


class Jobs:
    def __init__(
        self, tree: Tree, emit: Emit, reconcile: Callable[[Progress], Awaitable[Status]]
    ) -> None:
        self._tree = tree
        self._emit = emit
        self._reconcile = reconcile
        self._number = 0
        self._waiting: JobStatus | None = None

    def reconcile(self) -> tuple[str, Awaitable[None] | None]:
        """The job's path, and its work; None where one that has not begun yet serves this too."""
        if self._waiting is not None:
            return names.job_path(self._waiting.id), None
        self._number += 1
        job = JobStatus(self._number, "reconcile", running=False, done=0, total=0, step="")
        self._waiting = job
        path = names.job_path(job.id)
        self._tree.put(path, job)
        return path, self._run(path, job)

    async def _run(self, path: str, job: JobStatus) -> None:
        def progress(done: int, total: int, step: str) -> None:
            if self._waiting is job:
                self._waiting = None
            self._tree.put(path, replace(job, running=True, done=done, total=total, step=step))

        result, detail = "failed", "vnetd is stopping"
        try:
            status = await self._reconcile(progress)
            result, detail = "done", status.state.value
        except VnetdError as error:
            detail = str(error)
        except Exception:
            # A fault of vnetd's own, as in a call: the job ends, the daemon does not.
            log.exception("job %s", path)
            detail = "vnetd met an internal error; its log says more"
        finally:
            if self._waiting is job:
                self._waiting = None
            # Whoever waits for the job reads the state after it.
            self._tree.after_that(partial(self._end, path, job.id, result, detail))

    def _end(self, path: str, number: int, result: str, detail: str) -> None:
        self._tree.remove(path)
        body = marshal("uoss", [number, path, result, detail])
        self._emit(names.ROOT, names.MANAGER, "JobRemoved", "uoss", body)
