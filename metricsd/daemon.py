"""The daemon: joins tail, store, sync, failover, schedule and control socket into one process.

Every task has a name and lives in one TaskGroup; if one dies, the daemon stops loudly. A store that fails is no such
death: the keeper looks after it and the mode says how to go on meanwhile. Everything that touches the store goes through
one writer thread. `_shut_down` is the only way out, in order: stop intake, drain, checkpoint, close; a stop that takes
longer than its limit is forced, which loses nothing because whatever was not committed still lies in the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

import structlog

from metricsd import __version__, modes
from metricsd.chores import Chores
from metricsd.clock import US_PER_S, Clock, SystemClock
from metricsd.config import Config, Paths
from metricsd.control import socket_path
from metricsd.control_server import ControlServer
from metricsd.delivering import Delivering
from metricsd.direct import Direct
from metricsd.errors import EXIT_FAILED, MetricsdError, SpoolUnavailable, StoreError, StoreUnavailable
from metricsd.failover import Mode, Reason
from metricsd.governor import Governor
from metricsd.health import Outcome
from metricsd.local_metrics import CONTENT_TYPE
from metricsd.loopback import Loopback, parse_address
from metricsd.netwatch import NetworkWatch
from metricsd.notify import Notifier
from metricsd.observing import Observing
from metricsd.policy import Layers, places_of
from metricsd.prober import CloudAsker, Prober
from metricsd.schedule import Schedule
from metricsd.store import outbox
from metricsd.storekeeper import StoreKeeper
from metricsd.sync.engine import Engine
from metricsd.sync.realtime import NOT_LOGGED_IN, News, Realtime, find_obstacle
from metricsd.sync.report import Report
from metricsd.syncing import Syncing
from metricsd.verbs import Parts, Verbs
from metricsd.watch import Watcher
from metricsd.writer import Writer

T = TypeVar("T")

SPOOL_PAUSE_S = 1.0
"""Between attempts while captures cannot be deleted: that must not become a busy loop."""
CLOCK_JUMP_S = 5.0
"""Wall and monotonic time drifting apart by more than this between two looks: sleep, or somebody set the clock."""

log = structlog.get_logger("daemon")


class Companion(Protocol):
    """What runs beside the daemon in its process: the embedded cloud."""

    async def serve(self) -> None:
        """Run until cancelled."""
        ...

    async def join(self) -> None:
        """Return when it is up and this installation is its device."""
        ...


class _Parts(NamedTuple):
    """What exists once the home is open."""

    governor: Governor
    engine: Engine
    syncing: Syncing
    realtime: Realtime
    prober: Prober
    direct: Direct
    delivering: Delivering
    chores: Chores
    control: ControlServer


class Daemon:
    """One daemon of one home. The caller holds the instance lock."""

    def __init__(
        self, paths: Paths, config: Config, *, clock: Clock | None = None, companion: Companion | None = None
    ) -> None:
        self._paths = paths
        self._config = config
        self._clock = clock or SystemClock()
        self._companion = companion
        self._writer = Writer(paths.store)
        self._keeper = StoreKeeper(
            paths, config, self._clock, sent_calls=lambda: {} if self._parts is None else self._parts.direct.calls()
        )
        self._stop = asyncio.Event()
        self._ready = False
        self._spool_trouble: str | None = None
        self._sync_failed = False
        self._could_sync = False
        self._turned = False
        self._notifier = Notifier.from_environment(os.environ)
        self._policies = Layers(places_of(paths), keep=True)
        self._policy_told: dict[str, object] = {}
        self._schedule = Schedule(config, self._sync_due)
        self._network = NetworkWatch(self._on_network)
        self._parts: _Parts | None = None
        self._observing: Observing | None = None
        self._force_timer: threading.Timer | None = None

    @property
    def ready(self) -> bool:
        """Whether everything is up."""
        return self._ready

    @property
    def spool_trouble(self) -> str | None:
        """Why captures that are stored cannot be deleted; None when they can."""
        return self._spool_trouble

    def stop(self) -> None:
        """Ask for the orderly end, and force it when its time is up. May be called again."""
        self._stop.set()
        self._force_later()

    async def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Run until `stop()`; raise what a task died of."""
        try:
            await self._open()
            async with asyncio.TaskGroup() as group:
                tasks = await self._start(group)
                if on_ready is not None and not self._stop.is_set():
                    on_ready()
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await self._shut_down()

    async def _open(self) -> None:
        """Open the home and join the parts. A store that cannot be opened is a trouble, not the end."""
        await self._writer.run(self._keeper.open)
        paths, config, clock, keeper = self._paths, self._config, self._clock, self._keeper
        governor = Governor(paths, config.failover, clock, on_enter=self._on_enter)
        engine = Engine(
            paths, keeper.store, config.sync, clock=clock, run=self._run, policies=self._policies,
            is_gentle=lambda: governor.is_gentle, on_outcome=self._on_outcome,
        )  # fmt: skip
        realtime = Realtime(
            paths, config.sync, self._on_news,
            find_pause=self._find_pause, on_heard=governor.note_heard, on_lost=lambda: self._opened.prober.soon(),
        )  # fmt: skip
        syncing = Syncing(
            engine, self._schedule, paths, clock, governor,
            confirm_s=config.failover.dwell_s, after_round=self._after_round,
        )  # fmt: skip
        prober = Prober(
            governor, CloudAsker(paths, config.sync), config.failover, clock,
            beat_s=lambda: realtime.beat_s, before_good=self._measure_backlog,
        )  # fmt: skip
        direct = Direct(paths, config, clock)
        delivering = Delivering(direct, clock, lambda: governor.mode is Mode.REMOTE_ONLY, self._on_outcome)
        chores = Chores(paths, config, keeper, self._schedule, self._run)
        verbs = Verbs(self, Parts(keeper, governor, syncing, realtime, delivering, clock))
        observing = Observing(self, paths, clock, self._run, (keeper, governor, realtime))
        control = ControlServer(socket_path(paths.state_dir), {**verbs.handlers(), "metrics": observing.answer})
        self._observing = observing
        self._parts = _Parts(governor, engine, syncing, realtime, prober, direct, delivering, chores, control)
        self._could_sync = governor.allows_rounds
        self._note_store()
        governor.step()

    @property
    def _opened(self) -> _Parts:
        if self._parts is None:
            raise RuntimeError("the home is not open yet")
        return self._parts

    async def _start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start every task, the companion first, and return them once everything is up."""

        def begin(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            return group.create_task(self._for_ever(name, work), name=name)

        parts = self._opened
        # Captures are taken in from the first moment; the socket answers "not ready" until the end of this function.
        tasks = [begin("tail", self._tail_loop()), begin("store", self._store_loop())]
        tasks.append(begin("chores", parts.chores.loop()))
        await parts.control.start()
        if self._companion is not None:
            tasks.append(begin("cloud", self._companion.serve()))
            await self._unless_stopped(self._companion.join())
            parts.governor.look_at_login()
        self._schedule.start()
        tasks.append(begin("sync", parts.syncing.loop()))
        if self._config.sync.realtime:
            tasks.append(begin("hurry", parts.syncing.hurry_loop()))
        if find_obstacle(self._config.sync) is None:
            tasks.append(begin("realtime", parts.realtime.loop()))
        tasks.append(begin("probe", parts.prober.loop()))
        if self._observing is not None and (address := parse_address(self._config.daemon.metrics_listen)):
            tasks.append(begin("metrics", Loopback(address, self._observing.page, CONTENT_TYPE).loop()))
        self._network.start()
        self._ready = True
        if self._notifier.listens:
            tasks.append(begin("notify", self._notifier.loop(self._in_words)))
        log.info("daemon.started", pid=os.getpid(), version=__version__, mode=parts.governor.mode.value)
        return tasks

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for `work`, but not past a stop."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            stopped.cancel()

    async def _shut_down(self) -> None:
        """End in order: stop intake, drain, checkpoint, close. Tasks have ended when this is called."""
        self._ready = False
        self._notifier.stopping()
        self._force_later()
        self._schedule.stop()
        self._network.close()
        if self._parts is not None:
            await self._parts.control.close()
            await self._parts.engine.close()
            await self._parts.prober.close()
            await self._parts.direct.close()
            if self._stop.is_set():
                with contextlib.suppress(MetricsdError):
                    await self._drain()
        await self._writer.run(self._keeper.close)
        self._writer.close()
        if self._force_timer is not None:
            self._force_timer.cancel()
        log.info("daemon.stopped", pid=os.getpid())

    async def _drain(self) -> None:
        """Take in what lies in the spool now, for half of the stop's limit at most; the rest waits safely."""
        deadline = self._clock.monotonic() + self._config.daemon.stop_timeout_s / 2
        while self._takes_in and self._clock.monotonic() < deadline:
            if not (await self._writer.run(self._keeper.tick)).more:
                return

    def _force_later(self) -> None:
        """End the process if the orderly stop takes longer than its limit."""

        def force() -> None:
            log.error("stop.forced", after_s=self._config.daemon.stop_timeout_s)
            os._exit(EXIT_FAILED)

        if self._force_timer is not None:
            return
        self._force_timer = threading.Timer(self._config.daemon.stop_timeout_s, force)
        self._force_timer.daemon = True
        self._force_timer.start()

    @property
    def _takes_in(self) -> bool:
        """Whether captures go into the store now."""
        return self._keeper.trouble is None and self._opened.governor.mode is not Mode.REMOTE_ONLY

    async def _run(self, work: Callable[..., T], /, *args: object) -> T:
        """Do what uses the store in its thread; a store that fails there changes the mode."""
        try:
            return await self._writer.run(self._keeper.call, work, *args)
        finally:
            self._note_store()

    async def _tail_loop(self) -> None:
        """Take captures and shared files in, whenever the watcher wakes."""
        drift = self._drift_s()
        async for _ in Watcher(self._paths.spool, self._config.tail).wakes(self._stop):
            await self.take_all()
            self._look_at_policies()
            self._look_at_login()
            if abs(self._drift_s() - drift) > CLOCK_JUMP_S:
                drift = self._drift_s()
                self._on_wake()

    async def take_all(self) -> None:
        """Take in what lies in the spool now; while there is no store, send it."""
        await self._opened.delivering.deliver()
        more = True
        while more and self._takes_in and not self._stop.is_set():
            try:
                done = await self._writer.run(self._keeper.tick)
            except SpoolUnavailable as error:
                self._note_spool(str(error))
                await self._clock.sleep(SPOOL_PAUSE_S)
                return
            except StoreUnavailable:
                self._note_store()
                return
            self._note_spool(None)
            more = done.more
            if done.critical:
                self.hurry()
            if done.added or done.rejected:
                log.debug("spool.read", added=done.added, known=done.known, rejected=done.rejected)

    async def _store_loop(self) -> None:
        """Look after the store, and go on at once when it is back or the mode is another one."""
        while True:
            await self._clock.sleep(self._config.store.check_s)
            before = self._keeper.trouble
            await self._writer.run(self._keeper.check)
            self._note_store()
            self._look_at_login()
            if self._turned or (before is not None and self._keeper.trouble is None):
                self._turned = False
                await self.take_all()

    def hurry(self) -> None:
        """Send what other devices should hear of within a second, unless real time is switched off."""
        if self._config.sync.realtime and self._parts is not None:
            self._parts.syncing.hurry()

    def _on_news(self, news: News) -> None:
        """Pull what another device stored; with many devices each waits a random part of the spread."""
        spread_s = random.uniform(0.0, news.spread_s)  # noqa: S311  it spreads load, it keeps no secret
        self._opened.syncing.hear(after_s=spread_s, connected=news.connected)

    def _on_outcome(self, outcome: Outcome) -> None:
        """Take in what an exchange says about the cloud."""
        self._opened.governor.note(outcome)
        self._look_at_gate()
        self._opened.prober.look_again()

    async def _after_round(self, report: Report) -> None:
        if report.ok and self._sync_failed:
            self._opened.realtime.note_recovery()
        self._sync_failed = not report.ok
        await self._measure_backlog()

    async def _measure_backlog(self) -> None:
        """Tell how much waits, where that decides: at the end of an outage, and until the backlog is short."""
        governor = self._opened.governor
        if not governor.is_cut_off and governor.now.reason is not Reason.BACKLOG:
            return
        with contextlib.suppress(StoreError):
            governor.note_backlog(await self._run(outbox.pending_events, self._keeper.store))

    def _on_enter(self, before: modes.Change, now: modes.Change) -> None:
        """Let every part behave by the new mode."""
        if self._parts is None:
            return
        if before.mode is not now.mode:
            self._turned = True
            if Mode.HYBRID in (before.mode, now.mode):
                self._parts.realtime.connect_anew()
            if before.mode is Mode.REMOTE_ONLY:
                self._parts.direct.forget()
        self._look_at_gate()
        self._parts.prober.look_again()

    def _look_at_login(self) -> None:
        """Let everything follow a login, a logout or a renewed token."""
        parts = self._opened
        parts.governor.look_at_login()
        parts.syncing.notice_login()
        parts.realtime.notice_login()
        self._look_at_gate()

    def _look_at_gate(self) -> None:
        """Sync at once when that is allowed again."""
        can_sync = self._opened.governor.allows_rounds
        if can_sync and not self._could_sync:
            self._opened.syncing.resume()
        self._could_sync = can_sync

    def _find_pause(self) -> str | None:
        """Return why there is no stream of news in this mode."""
        now = self._opened.governor.now
        if now.mode is Mode.HYBRID:
            return None
        return NOT_LOGGED_IN if now.reason is Reason.NO_LOGIN else f"paused: the mode is {now.mode.value}"

    def _on_network(self) -> None:
        """The network is another one: what was known of the cloud is about the one before."""
        log.debug("network.changed")
        parts = self._opened
        parts.governor.note_network()
        parts.prober.soon(anew=True)
        parts.syncing.retry()

    def _on_wake(self) -> None:
        """The machine slept, or its clock jumped."""
        parts = self._opened
        self._schedule.look_again()
        parts.governor.note_wake()
        # After sleep the connection is dead, and nobody would notice for two heartbeats.
        parts.realtime.connect_anew(slept=True)
        parts.prober.soon(anew=True)
        parts.syncing.retry()

    def _note_store(self) -> None:
        """Let the mode follow the store."""
        if self._parts is not None:
            trouble = self._keeper.trouble
            self._parts.governor.note_store(None if trouble is None else trouble.reason)
            self._look_at_gate()

    def _note_spool(self, trouble: str | None) -> None:
        """Log once each that captures cannot be deleted, and that they can again."""
        if trouble is not None and self._spool_trouble is None:
            log.error("spool.failed", reason=trouble)
        elif trouble is None and self._spool_trouble is not None:
            log.info("spool.recovered")
        self._spool_trouble = trouble

    def _look_at_policies(self) -> None:
        """Take changed policy files into force, for `status` too, and say so once."""
        told = self._policies.current().report()
        if told == self._policy_told:
            return
        self._policy_told = told
        if told["error"]:
            log.error("policy.refused", reason=told["error"])
        log.info("policy.in_force", name=told["name"], version=told["version"], sha256=told["sha256"])

    def _drift_s(self) -> float:
        return self._clock.now_us() / US_PER_S - self._clock.monotonic()

    def _sync_due(self) -> None:
        if self._parts is not None:
            self._parts.syncing.want()

    def _in_words(self) -> str:
        """Return mode and reason in one line, for the service manager."""
        now = self._opened.governor.now
        return f"{now.mode.value}: {modes.reason_text(now)}"

    async def _for_ever(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that must not end by itself before the stop."""
        try:
            await work
        except Exception as error:
            log.exception("task.died", task=name, reason=str(error))
            raise
        if not self._stop.is_set():
            raise RuntimeError(f"the task {name!r} ended by itself")
