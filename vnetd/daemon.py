"""The composition root: builds the parts, owns their tasks, and answers signals and systemd."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from systemd import daemon as systemd

from vnetd import entries, wallclock, watchdog
from vnetd.api.service import Service
from vnetd.backends import files, policyfile, scene
from vnetd.backends.dnsmasq import Dnsmasq
from vnetd.backends.firewalls.filters import Filters
from vnetd.backends.firewalls.firewall import Firewall
from vnetd.backends.firewalls.guard import Guard
from vnetd.backends.firewalls.iptables import Iptables
from vnetd.backends.firewalls.nf_tables import NfTables
from vnetd.backends.firewalls.zoned import Zoned
from vnetd.backends.history import History
from vnetd.backends.kernel.hostbridges import HostBridges
from vnetd.backends.kernel.links import Links
from vnetd.backends.kernel.routes import Routes
from vnetd.backends.kernel.sysctls import Sysctls
from vnetd.backends.libvirt.libvirtd import Libvirtd
from vnetd.bus import sysbus
from vnetd.core import metrics as metrics_core
from vnetd.core import policy as policy_core
from vnetd.core import why
from vnetd.core.actions import Action
from vnetd.core.model import Cause, Lease, State
from vnetd.core.record import Record
from vnetd.core.status import Status
from vnetd.core.why import Answer
from vnetd.errors import BackendError, PolicyError, VnetdError
from vnetd.instance import Instance
from vnetd.reconcile import ALL_SOURCES, Progress, Reconciler
from vnetd.trigger import Clock

log = logging.getLogger(__name__)

# An editor writes a file in several steps; they are one change.
_FILE_SETTLE_SECONDS = 0.2
# systemd must not wait for a libvirtd that does not answer.
_READY_SECONDS = 2.0
_GUARD_FD = "guard"
_METRICS_SECONDS = 5.0
# What may be lost without anybody's word.
_NO_POLICY = (policy_core.Policy(), policy_core.Policy(present=False))


@dataclass(frozen=True, slots=True)
class Options:
    config: Path
    connect: str
    observe: bool
    state: Path
    runtime: Path


async def run(options: Options) -> None:
    """Until SIGTERM or SIGINT. Raises VnetdError where it cannot start."""
    with Instance(options.runtime) as instance:
        if "NOTIFY_SOCKET" in os.environ and (delay := instance.delay()):
            log.warning("vnetd came to an end too often: it starts in %.0f s", delay)
            systemd.notify(f"STATUS=came to an end too often, waits {delay:.0f} s")
            await asyncio.sleep(delay)
        await _Daemon(options).run()
        instance.ended_well()


class _Daemon:
    """Operations for the bus, and Publisher for the reconciler: to journal, history and bus."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._libvirtd = Libvirtd(options.connect)
        self._kernel = NfTables()
        tools = Iptables(self._kernel)
        firewall = Firewall(self._kernel, tools, self._ask_for_rules)
        self._backends = (
            self._libvirtd,
            firewall,  # which tells Links what to look at
            Links(firewall.is_known),
            Routes(),
            HostBridges(options.runtime),
            Filters(self._kernel, tools, Zoned(options.state)),
            self._guard(),
            Sysctls(options.state),
            Dnsmasq(),
        )
        clock = Clock(time.monotonic, lambda: datetime.now(UTC))
        self._reconciler = Reconciler(self._backends, self, clock, self._libvirtd.leaving)
        self._reconciler.observe_only = options.observe
        self._history = History(options.state / "history.sqlite")
        for text in self._history.troubles:
            entries.history_lost(text)
        self._reconciler.trouble("history", self._history.troubles)
        self._service = Service(self, self._reconciler.trouble)
        self._published = asyncio.Event()
        self._status: Status | None = None
        self._status_line = self._told_line = ""
        self._counts = metrics_core.Counts()
        self._counted = asyncio.Event()
        self._ready = False
        self._editing = asyncio.Lock()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._try_reload)
        self._try_reload()
        async with asyncio.TaskGroup() as tasks:
            watchers = [
                tasks.create_task(work, name=name)
                for name, work in (
                    *(
                        (b.source.value, b.watch(self._reconciler.trigger.poke))
                        for b in self._backends
                    ),
                    ("nf_tables", self._kernel.watch()),
                    ("policy", self._watch_policy()),
                    ("bus", self._service.serve()),
                    ("wall clock", wallclock.watch(self._on_clock_set)),
                    ("ready", self._say_ready()),
                    ("watchdog", watchdog.feed(self._reconciler.busy_since)),
                    ("metrics", self._write_metrics()),
                )
            ]
            await self._reconciler.run()
            for watcher in watchers:
                watcher.cancel()
        self._history.close()

    def _on_clock_set(self, seconds: float) -> None:
        log.info("the clock was set by %+.0f s, or the host slept: looking at everything", seconds)
        self._reconciler.trigger.poke(*ALL_SOURCES, reason="the clock was set, or the host slept")

    # -- Operations

    async def reconcile(self, progress: Progress) -> Status:
        return await self._reconciler.reconcile(progress)

    async def plan(self) -> Sequence[Action]:
        return await self._reconciler.plan()

    async def why(self, subject: str, destination: str) -> Answer:
        """Raises VnetdError for a subject or destination that there is not."""
        observed, found = await self._reconciler.look()
        asked = why.question(observed, subject, destination)
        return why.answer(asked, self._reconciler.policy, observed, found, await scene.look(asked))

    async def host_policy(self) -> str:
        observed, _ = await self._reconciler.look()
        if observed.libvirt is None:
            raise VnetdError("libvirt has not answered yet: there is nothing to import")
        return policy_core.render(observed.libvirt.networks.values())

    async def leases(self, network: str) -> Sequence[Lease]:
        return await self._libvirtd.leases(network)

    def reload(self) -> None:
        """Raises PolicyError; the policy in force then stays."""
        if not self._ready:
            self._load()
            return
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._load()
        finally:
            systemd.notify("READY=1")

    def policy_text(self) -> tuple[str, str]:
        return policyfile.read(self._options.config)

    async def set_policy(self, text: str, etag: str, uid: int) -> str:
        main = self._options.config
        async with self._editing:
            await asyncio.to_thread(self._parse, files.read_policy(main, instead=text))
            new = await asyncio.to_thread(policyfile.replace, main, text, etag)
            entries.policy_edited(str(main), uid)
            self.reload()  # what is there now: somebody may have written by hand meanwhile
        return new

    def pause(self, seconds: float) -> None:
        entries.paused(seconds)
        self._reconciler.pause(seconds)

    def resume(self) -> None:
        entries.resumed()
        self._reconciler.resume()

    def metrics(self, form: metrics_core.Format = metrics_core.Format.OPENMETRICS) -> str:
        counts, passes = self._counts, self._reconciler.passes
        return metrics_core.render(metrics_core.families(counts, self._status, passes=passes), form)

    def history(self, before: int, limit: int) -> Sequence[tuple[int, Record]]:
        return self._history.read(before, limit)

    # -- Publisher

    def publish(self, status: Status) -> None:
        self._service.publish(status)
        self._status = status
        self._published.set()
        self._counted.set()
        reasons = [*status.reasons]
        reasons += [f"{n.name}: {why}" for n in status.networks.values() for why in n.reasons]
        line = f"{status.state}, {len(status.networks)} networks"
        if reasons:
            line += f"; {reasons[0]}"
        if line != self._status_line:
            self._status_line = line
            systemd.notify(f"STATUS={line}")
        # What is being healed is in the journal by what is done.
        if line != self._told_line and status.state is not State.HEALING:
            self._told_line = line
            entries.state(status.state, line)
        self._history.flush()  # what could not be written before
        self._reconciler.trouble("history", self._history.troubles)

    def drift_detected(self, object_: str, drift: Sequence[str], cause: Cause | None) -> None:
        self._service.drift_detected(object_, drift, cause)
        self._counts.drifted(cause)
        entries.drift_detected(object_, drift, cause)

    def recorded(self, record: Record) -> None:
        number = self._history.append(record)
        self._reconciler.trouble("history", self._history.troubles)
        self._service.recorded(number, record)
        self._counts.recorded(record)
        self._counted.set()
        entries.recorded(record)

    async def _write_metrics(self) -> None:
        """For node_exporter, which looks every 15 s or so."""
        while True:
            await self._counted.wait()
            self._counted.clear()
            path = self._reconciler.policy.metrics
            if path is None:
                self._reconciler.trouble("metrics", [])
                continue
            text = self.metrics(metrics_core.Format.PROMETHEUS)
            try:
                await asyncio.to_thread(files.replace_text, Path(path), text)
            except OSError as error:
                wrong = f"metrics: {path}: {error.strerror}"
                self._reconciler.trouble("metrics", [wrong])
            else:
                self._reconciler.trouble("metrics", [])
            await asyncio.sleep(_METRICS_SECONDS)

    # -- policy

    async def _watch_policy(self) -> None:
        main = self._options.config
        while True:
            # Armed before the policy is read: no change falls in between. Armed anew each time:
            # the drop-in directory may be new.
            watch = files.DirectoryWatch(
                [main.parent, files.drop_ins(main)],
                matters=lambda name: name == main.name or name.endswith(".toml"),
            )
            try:
                self._try_reload()
                await watch.changed()
                await asyncio.sleep(_FILE_SETTLE_SECONDS)
            finally:
                watch.close()

    def _try_reload(self) -> None:
        with suppress(PolicyError):  # told as a trouble: the policy in force stays
            self.reload()

    def _load(self) -> None:
        try:
            texts = files.read_policy(self._options.config)
            policy = self._parse(texts)
        except PolicyError as error:
            entries.policy_rejected(error.problems)
            self._reconciler.trouble("policy", [f"policy: {p}" for p in error.problems])
            self._service.policy_rejected(error.problems)
            raise
        self._reconciler.trouble("policy", [])
        self._history.retention = policy.history
        if policy != self._reconciler.policy:
            entries.policy_loaded(len(policy.networks), len(texts))
            self._reconciler.load(policy)
            self._service.policy_loaded([text.file for text in texts], len(policy.networks))

    def _parse(self, texts: Sequence[policy_core.PolicyText]) -> policy_core.Policy:
        """Raises PolicyError."""
        empty = not any(text.text.strip() for text in texts)
        if empty and self._reconciler.policy not in _NO_POLICY:
            raise PolicyError([files.missing(self._options.config, empty=bool(texts))])
        return policy_core.parse(texts) if texts else policy_core.Policy(present=False)

    async def _ask_for_rules(self, pid: int) -> None:
        """firewalld's word of a reload. Others would act on it too: it goes to libvirt alone."""
        path, interface = "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1"
        try:
            await sysbus.signal_process(pid, path, interface, "Reloaded")
        except (sysbus.BusError, sysbus.RemoteError) as error:
            wrong = f"libvirt cannot be told to install its rules again: {error}"
            raise BackendError(wrong) from error
        self._libvirtd.expect_chains()

    # -- systemd

    def _guard(self) -> Guard:
        """systemd keeps its socket, and so the table its owner, while vnetd is restarted."""
        for fd, name in systemd.listen_fds_with_names().items():
            if name == _GUARD_FD:
                kept = socket.socket(fileno=fd)
                kept.setblocking(False)
                return Guard(self._kernel.subscribe, kept)
        guard = Guard(self._kernel.subscribe)
        systemd.notify(f"FDSTORE=1\nFDNAME={_GUARD_FD}\nFDPOLL=0", False, 0, [guard.fileno()])
        return guard

    def _stop(self) -> None:
        systemd.notify("STOPPING=1")
        self._reconciler.stop()

    async def _say_ready(self) -> None:
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await self._published.wait()
        except TimeoutError:
            log.warning("libvirt has not answered in %.0f s", _READY_SECONDS)
        self._ready = True
        systemd.notify("READY=1")
