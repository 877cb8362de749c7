"""The daemon: joins tail, store, sync, schedule and control socket into one process.

Every task has a name and lives in one TaskGroup; if one dies, the daemon stops loudly. Everything that touches the
store goes through one writer thread. `_shut_down` is the only way out, in order: stop intake, drain, checkpoint,
close; a stop that takes longer than its limit is forced, which loses nothing because whatever was not committed
still lies in the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog

from metricsd import __version__
from metricsd.clock import US_PER_S, Clock, SystemClock
from metricsd.config import Config, Paths
from metricsd.control import socket_path
from metricsd.control_server import ControlServer
from metricsd.errors import EXIT_FAILED, MetricsdError, StoreUnavailable
from metricsd.intake import open_intake
from metricsd.notify import Notifier
from metricsd.policy import Layers, places_of
from metricsd.schedule import Chore, Schedule
from metricsd.store import conflict_log, outbox
from metricsd.store.backup import backup
from metricsd.store.connection import Store
from metricsd.store.counters import close_idle
from metricsd.store.quarantine import sweep
from metricsd.store.retention import DAY_US, fold
from metricsd.sync.engine import Engine
from metricsd.sync.realtime import News, Realtime, find_obstacle
from metricsd.sync.report import Report
from metricsd.syncing import Syncing, remember_mode
from metricsd.tail import Tail
from metricsd.watch import Watcher
from metricsd.writer import Writer

STORE_PAUSE_S = 1.0
"""Between attempts while the store cannot be written: a full disk must not become a busy loop."""
RATE_FRESH_S = 10.0
"""The rate at which a backlog is taken in is told for this long after the last captures came in."""
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
    """What exists once the store is open."""

    store: Store
    tail: Tail
    engine: Engine
    syncing: Syncing
    realtime: Realtime


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
        self._stop = asyncio.Event()
        self._ready = False
        self._store_trouble: str | None = None
        self._sync_failed = False
        self._last_round = "hybrid: not synced yet"
        self._notifier = Notifier.from_environment(os.environ)
        self._policies = Layers(places_of(paths), keep=True)
        self._policy_told: dict[str, object] = {}
        self._schedule = Schedule(config, self._sync_due)
        self._control = ControlServer(
            socket_path(paths.state_dir),
            {
                "ping": self._on_ping,
                "status": self._on_status,
                "sync": self._on_sync,
                "edited": self._on_edited,
                "stop": self._on_stop,
            },
        )
        self._parts: _Parts | None = None
        self._force_timer: threading.Timer | None = None

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
        """Open what everything else needs: identity, spool, store, and the tail over them."""
        store, tail = await self._writer.run(open_intake, self._paths, self._config, self._clock)
        engine = Engine(
            self._paths, store, self._config.sync, clock=self._clock, run=self._writer.run, policies=self._policies
        )

        async def remember(report: Report) -> None:
            await self._writer.run(remember_mode, store, report)
            self._last_round = f"{report.mode}: {report.error.message if report.error else 'synced'}"
            if report.ok and self._sync_failed:
                realtime.note_recovery()
            self._sync_failed = not report.ok

        realtime = Realtime(self._paths, self._config.sync, self._on_news)
        syncing = Syncing(engine, self._schedule, self._paths, self._clock, remember)
        self._parts = _Parts(store, tail, engine, syncing, realtime)

    @property
    def _opened(self) -> _Parts:
        if self._parts is None:
            raise RuntimeError("the store is not open yet")
        return self._parts

    async def _start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start every task, the companion first, and return them once everything is up."""

        def begin(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            return group.create_task(self._for_ever(name, work), name=name)

        # Captures are taken in from the first moment; the socket answers "not ready" until the end of this function.
        tasks = [begin("tail", self._tail_loop()), begin("chores", self._chore_loop())]
        await self._control.start()
        if self._companion is not None:
            tasks.append(begin("cloud", self._companion.serve()))
            await self._unless_stopped(self._companion.join())
        self._schedule.start()
        tasks.append(begin("sync", self._opened.syncing.loop()))
        if self._config.sync.realtime:
            tasks.append(begin("hurry", self._opened.syncing.hurry_loop()))
        if find_obstacle(self._config.sync) is None:
            tasks.append(begin("realtime", self._opened.realtime.loop()))
        self._ready = True
        if self._notifier.listens:
            tasks.append(begin("notify", self._notifier.loop(self._in_words)))
        log.info("daemon.started", pid=os.getpid(), version=__version__)
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
        await self._control.close()
        if self._parts is not None:
            await self._parts.engine.close()
            with contextlib.suppress(MetricsdError):
                if self._stop.is_set():
                    await self._drain()
                await self._writer.run(self._parts.store.checkpoint)
            self._parts.tail.close()
            await self._writer.run(self._parts.store.close)
        self._writer.close()
        if self._force_timer is not None:
            self._force_timer.cancel()
        log.info("daemon.stopped", pid=os.getpid())

    async def _drain(self) -> None:
        """Take in what lies in the spool now, for half of the stop's limit at most; the rest waits safely."""
        deadline = self._clock.monotonic() + self._config.daemon.stop_timeout_s / 2
        while self._clock.monotonic() < deadline:
            if not (await self._writer.run(self._opened.tail.tick)).more:
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

    async def _tail_loop(self) -> None:
        """Take captures and shared files in, whenever the watcher wakes."""
        drift = self._drift_s()
        async for _ in Watcher(self._paths.spool, self._config.tail).wakes(self._stop):
            await self._take_all()
            self._look_at_policies()
            self._opened.syncing.notice_login()
            self._opened.realtime.notice_login()
            if abs(self._drift_s() - drift) > CLOCK_JUMP_S:
                drift = self._drift_s()
                self._schedule.look_again()
                # After sleep the connection is dead, and nobody would notice for two heartbeats.
                self._opened.realtime.connect_anew(slept=True)

    async def _take_all(self) -> None:
        more = True
        while more and not self._stop.is_set():
            try:
                done = await self._writer.run(self._opened.tail.tick)
            except StoreUnavailable as error:
                self._note_trouble(str(error))
                await self._clock.sleep(STORE_PAUSE_S)
                return
            self._note_trouble(None)
            more = done.more
            if done.critical:
                self._hurry()
            if done.added or done.rejected:
                log.debug("spool.read", added=done.added, known=done.known, rejected=done.rejected)

    def _hurry(self) -> None:
        """Send what other devices should hear of within a second, unless real time is switched off."""
        if self._config.sync.realtime and self._parts is not None:
            self._parts.syncing.hurry()

    def _on_news(self, news: News) -> None:
        """Pull what another device stored; with many devices each waits a random part of the spread."""
        spread_s = random.uniform(0.0, news.spread_s)  # noqa: S311  it spreads load, it keeps no secret
        self._opened.syncing.hear(after_s=spread_s, connected=news.connected)

    def _note_trouble(self, trouble: str | None) -> None:
        """Log the store's failing and its recovery once each."""
        if trouble is not None and self._store_trouble is None:
            log.error("store.failed", reason=trouble)
        elif trouble is None and self._store_trouble is not None:
            log.info("store.recovered")
        self._store_trouble = trouble

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

    async def _chore_loop(self) -> None:
        """Do the regular work in the store as it becomes due."""
        work = {Chore.CLOSE_IDLE: self._close_idle, Chore.RETENTION: self._retain, Chore.BACKUP: self._back_up}
        while True:
            chore = await self._schedule.next_chore()
            try:
                done = await self._writer.run(work[chore])
            except StoreUnavailable as error:
                log.warning("chore.postponed", chore=chore.value, reason=str(error))
            else:
                log.log(10 if not done else 20, "chore.done", chore=chore.value, items=done)

    def _close_idle(self) -> int:
        return close_idle(self._opened.store, int(self._config.sessions.idle_end_s * US_PER_S))

    def _retain(self) -> int:
        settings = self._config.store
        dropped = conflict_log.sweep(self._opened.store, settings.conflict_days) + sweep(
            self._opened.store, older_than_us=settings.quarantine_days * DAY_US, bytes_max=settings.quarantine_bytes_max
        )
        return dropped + fold(self._opened.store, days=settings.retention_days, synced_through=self._synced_through())

    def _back_up(self) -> int:
        return 1 if backup(self._opened.store, self._paths.backups, keep=self._config.store.backup_keep) else 0

    def _synced_through(self) -> int | None:
        """Return the newest position that the cloud has; None where there is no cloud to wait for."""
        stream = outbox.find(self._opened.store)
        if stream is None or not self._paths.credentials.exists():
            return None
        return stream.base + stream.acked_seq

    def _sync_due(self) -> None:
        if self._parts is not None:
            self._parts.syncing.want()

    def _in_words(self) -> str:
        """Return mode and reason in one line, for the service manager."""
        if self._store_trouble is not None:
            return f"degraded: {self._store_trouble}"
        return self._last_round if self._paths.credentials.exists() else "local_only: not logged in"

    async def _on_ping(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"ready": self._ready, "pid": os.getpid()}

    async def _on_status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Say what only the living daemon knows."""
        said = {"ready": self._ready, "pid": os.getpid(), "next_sync_us": None, "store_trouble": self._store_trouble}
        if self._parts is None:
            return said
        stream = self._parts.realtime.state
        progress = self._parts.tail.progress
        is_taking = progress.left > 0 and self._clock.monotonic() - progress.at < RATE_FRESH_S
        return said | {
            "taking_per_s": round(progress.per_s, 1) if is_taking else None,
            "next_sync_us": self._parts.syncing.next_us,
            "realtime": stream.live,
            "realtime_reason": stream.reason,
        }

    async def _on_sync(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take in what lies in the spool and sync it."""
        if not self._ready:
            raise MetricsdError("the daemon is still starting: try again in a moment")
        await self._take_all()
        report = await self._opened.syncing.now()
        done: dict[str, Any] = msgspec.to_builtins(report)
        return {**done, "exit_code": report.exit_code}

    async def _on_edited(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send what a command edited in the store."""
        self._hurry()
        return {}

    async def _on_stop(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.stop()
        return {"pid": os.getpid()}

    async def _for_ever(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that must not end by itself before the stop."""
        try:
            await work
        except Exception as error:
            log.exception("task.died", task=name, reason=str(error))
            raise
        if not self._stop.is_set():
            raise RuntimeError(f"the task {name!r} ended by itself")
