"""Takes what hooks and other programs wrote out of the spool: into the store, or while there is none to the cloud.

The watcher says when to look, the keeper whether the store can be used, the mode which way captures go. A stop drains
the spool for half of its limit at most; what is left waits safely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from metricsd.clock import US_PER_S, Clock
from metricsd.config import Config, Paths
from metricsd.delivering import Delivering
from metricsd.errors import SpoolUnavailable, StoreUnavailable
from metricsd.failover import Mode
from metricsd.governor import Governor
from metricsd.policy import Layers
from metricsd.steering import Steering
from metricsd.storekeeper import StoreKeeper
from metricsd.watch import Watcher
from metricsd.writer import Writer

SPOOL_PAUSE_S = 1.0
"""Between attempts while captures cannot be deleted: that must not become a busy loop."""
CLOCK_JUMP_S = 5.0
"""Wall and monotonic time drifting apart by more than this between two looks: sleep, or somebody set the clock."""

log = structlog.get_logger("daemon")


class Taking:
    """The intake of one daemon."""

    def __init__(
        self,
        home: tuple[Paths, Config, Clock],
        store: tuple[StoreKeeper, Writer],
        mode: tuple[Governor, Steering, Delivering],
        policies: Layers,
        stop: asyncio.Event,
        *,
        on_critical: Callable[[], None],
    ) -> None:
        """`on_critical` is called for what other devices should hear of within a second."""
        self._paths, self._config, self._clock = home
        self._keeper, self._writer = store
        self._governor, self._steering, self._delivering = mode
        self._policies = policies
        self._policy_told: dict[str, object] = {}
        self._stop = stop
        self._on_critical = on_critical
        self.spool_trouble: str | None = None
        """Why captures that are stored cannot be deleted; None when they can."""

    @property
    def takes_in(self) -> bool:
        """Whether captures go into the store now."""
        return self._keeper.trouble is None and self._governor.mode is not Mode.REMOTE_ONLY

    async def loop(self) -> None:
        """Take captures and shared files in, whenever the watcher wakes."""
        drift = self._drift_s()
        async for _ in Watcher(self._paths.spool, self._config.tail).wakes(self._stop):
            await self.take_all()
            self._look_at_policies()
            self._steering.look_at_login()
            if abs(self._drift_s() - drift) > CLOCK_JUMP_S:
                drift = self._drift_s()
                self._steering.on_wake()

    async def store_loop(self) -> None:
        """Look after the store, and go on at once when it is back or the mode is another one."""
        while True:
            await self._clock.sleep(self._config.store.check_s)
            before = self._keeper.trouble
            await self._writer.run(self._keeper.check)
            self._steering.note_store()
            self._steering.look_at_login()
            if self._steering.has_turned() or (before is not None and self._keeper.trouble is None):
                await self.take_all()

    async def take_all(self) -> None:
        """Take in what lies in the spool now; while the mode is remote_only, send it."""
        await self._delivering.deliver()
        more = True
        while more and self.takes_in and not self._stop.is_set():
            try:
                done = await self._writer.run(self._keeper.tick)
            except SpoolUnavailable as error:
                self._note_spool(str(error))
                await self._clock.sleep(SPOOL_PAUSE_S)
                return
            except StoreUnavailable:
                self._steering.note_store()
                return
            self._note_spool(None)
            more = done.more
            if done.critical:
                self._on_critical()
            if done.added or done.rejected:
                log.debug("spool.read", added=done.added, known=done.known, rejected=done.rejected)

    async def drain(self) -> None:
        """Take in what lies in the spool now, for half of the stop's limit at most; the rest waits safely."""
        deadline = self._clock.monotonic() + self._config.daemon.stop_timeout_s / 2
        while self.takes_in and self._clock.monotonic() < deadline:
            if not (await self._writer.run(self._keeper.tick)).more:
                return

    def _note_spool(self, trouble: str | None) -> None:
        """Log once each that captures cannot be deleted, and that they can again."""
        if trouble is not None and self.spool_trouble is None:
            log.error("spool.failed", reason=trouble)
        elif trouble is None and self.spool_trouble is not None:
            log.info("spool.recovered")
        self.spool_trouble = trouble

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
