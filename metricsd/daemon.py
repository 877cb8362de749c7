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
from typing import Any, NamedTuple, Protocol

import structlog

from metricsd import __version__, modes
from metricsd.chores import Chores
from metricsd.clock import Clock, SystemClock
from metricsd.config import Config, Paths
from metricsd.control import socket_path
from metricsd.control_server import ControlServer
from metricsd.delivering import Delivering
from metricsd.direct import Direct
from metricsd.errors import EXIT_FAILED, MetricsdError
from metricsd.failover import Mode
from metricsd.governor import Governor
from metricsd.legacy_local import LocalHost, LocalShelf
from metricsd.legacy_port import LegacySite
from metricsd.local_metrics import CONTENT_TYPE
from metricsd.loopback import Loopback, Page, parse_address
from metricsd.netwatch import NetworkWatch
from metricsd.notify import Notifier
from metricsd.observing import Observing
from metricsd.policy import Layers, places_of
from metricsd.prober import CloudAsker, Prober
from metricsd.schedule import Schedule
from metricsd.steering import Steered, Steering
from metricsd.storekeeper import StoreKeeper
from metricsd.sync.engine import Engine
from metricsd.sync.realtime import News, Realtime, find_obstacle
from metricsd.syncing import Syncing
from metricsd.taking import Taking
from metricsd.verbs import Parts, Verbs
from metricsd.writer import Writer

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
    taking: Taking
    chores: Chores
    control: ControlServer
    shelf: LocalShelf
    site: LegacySite


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
        self._notifier = Notifier.from_environment(os.environ)
        self._policies = Layers(places_of(paths), keep=True)
        self._schedule = Schedule(config, self._sync_due)
        self._steering = Steering(self._keeper, self._writer, self._schedule)
        self._network = NetworkWatch(self._steering.on_network)
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
        return None if self._parts is None else self._parts.taking.spool_trouble

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
        paths, config, clock, keeper, steering = self._paths, self._config, self._clock, self._keeper, self._steering
        governor = Governor(paths, config.failover, clock, on_enter=steering.on_enter)
        engine = Engine(
            paths, keeper.store, config.sync, clock=clock, run=steering.run, policies=self._policies,
            is_gentle=lambda: governor.is_gentle, on_outcome=steering.on_outcome,
        )  # fmt: skip
        realtime = Realtime(
            paths, config.sync, self._on_news,
            find_pause=steering.find_pause, on_heard=steering.on_heard, on_lost=steering.on_lost,
        )  # fmt: skip
        syncing = Syncing(
            engine, self._schedule, paths, clock, governor,
            confirm_s=config.failover.dwell_s, after_round=steering.after_round,
        )  # fmt: skip
        prober = Prober(
            governor, CloudAsker(paths, config.sync), config.failover, clock,
            beat_s=lambda: realtime.beat_s, before_good=steering.measure_backlog,
        )  # fmt: skip
        direct = Direct(paths, config, clock)
        delivering = Delivering(direct, clock, lambda: governor.mode is Mode.REMOTE_ONLY, steering.on_outcome)
        taking = Taking(
            (paths, config, clock), (keeper, self._writer), (governor, steering, delivering),
            self._policies, self._stop, on_critical=self.hurry,
        )  # fmt: skip
        chores = Chores(paths, config, keeper, self._schedule, steering.run)
        verbs = Verbs(self, Parts(keeper, governor, syncing, realtime, delivering, clock))
        self._observing = Observing(self, paths, clock, steering.run, (keeper, governor, realtime))
        handlers = {**verbs.handlers(), "metrics": self._observing.answer}
        control = ControlServer(socket_path(paths.state_dir), handlers)
        shelf = LocalShelf((paths, config, clock), keeper, steering.run, on_critical=self.hurry)
        host = LocalHost((paths, config), keeper, (governor, syncing, steering.run))
        site = LegacySite(shelf, host, config.legacy, clock)
        self._parts = _Parts(governor, engine, syncing, realtime, prober, direct, taking, chores, control, shelf, site)
        steering.begin(Steered(governor, syncing, realtime, prober, direct))

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
        tasks = [begin("tail", parts.taking.loop()), begin("store", parts.taking.store_loop())]
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
            page = Page("/metrics", self._observing.page, CONTENT_TYPE)
            tasks.append(begin("metrics", Loopback(address, page, "metrics").loop()))
        if address := parse_address(self._config.legacy.listen):
            tasks.append(begin("legacy_port", Loopback(address, parts.site, "legacy").loop()))
        tasks.append(begin("legacy_waiting", parts.shelf.loop()))
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
            self._parts.shelf.close()
            if self._stop.is_set():
                with contextlib.suppress(MetricsdError):
                    await self._parts.taking.drain()
        await self._writer.run(self._keeper.close)
        self._writer.close()
        if self._force_timer is not None:
            self._force_timer.cancel()
        log.info("daemon.stopped", pid=os.getpid())

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

    async def take_all(self) -> None:
        """Take in, or send, what lies in the spool now."""
        await self._opened.taking.take_all()

    def hurry(self) -> None:
        """Send what other devices should hear of within a second, unless real time is switched off."""
        if self._config.sync.realtime and self._parts is not None:
            self._parts.syncing.hurry()

    def _on_news(self, news: News) -> None:
        """Pull what another device stored; with many devices each waits a random part of the spread."""
        spread_s = random.uniform(0.0, news.spread_s)  # noqa: S311  it spreads load, it keeps no secret
        self._opened.syncing.hear(after_s=spread_s, connected=news.connected)

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
