"""What the daemon does in the store regularly: close idle sessions, retention, the nightly backup.

The schedule says when; each chore runs in the store's thread and takes a bounded time. A store that cannot be used
postpones a chore to its next time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import structlog

from metricsd.clock import US_PER_S
from metricsd.config import Config, Paths
from metricsd.errors import StoreUnavailable
from metricsd.schedule import Chore, Schedule
from metricsd.store import conflict_log, legacy_extra
from metricsd.store.backup import backup
from metricsd.store.counters import close_idle
from metricsd.store.quarantine import sweep
from metricsd.store.retention import DAY_US, fold, goes_on
from metricsd.storekeeper import StoreKeeper

log = structlog.get_logger("daemon")


class Chores:
    """The regular work of one home. `run(work)` does `work()` in the thread that owns the store."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        keeper: StoreKeeper,
        schedule: Schedule,
        run: Callable[[Callable[[], int]], Awaitable[int]],
    ) -> None:
        self._paths = paths
        self._config = config
        self._keeper = keeper
        self._schedule = schedule
        self._run = run
        self._work = {Chore.CLOSE_IDLE: self._close_idle, Chore.RETENTION: self._retain, Chore.BACKUP: self._back_up}

    async def loop(self) -> None:
        """Do each chore as it becomes due, for ever."""
        while True:
            await self.do(await self._schedule.next_chore())

    async def do(self, chore: Chore) -> None:
        """Do one chore now."""
        if self._keeper.trouble is not None:
            log.debug("chore.postponed", chore=chore.value)
            return
        try:
            done = await self._run(self._work[chore])
        except StoreUnavailable as error:
            log.warning("chore.postponed", chore=chore.value, reason=str(error))
        else:
            log.log(logging.INFO if done else logging.DEBUG, "chore.done", chore=chore.value, items=done)

    def _close_idle(self) -> int:
        return close_idle(self._keeper.store, int(self._config.sessions.idle_end_s * US_PER_S))

    def _retain(self) -> int:
        store, settings = self._keeper.store, self._config.store
        if not goes_on(store):
            return 0
        dropped = conflict_log.sweep(store, settings.conflict_days) + sweep(
            store, older_than_us=settings.quarantine_days * DAY_US, bytes_max=settings.quarantine_bytes_max
        )
        dropped += legacy_extra.sweep(store)
        return dropped + fold(store, days=settings.retention_days, synced_through=self._keeper.synced_through())

    def _back_up(self) -> int:
        return 1 if backup(self._keeper.store, self._paths.backups, keep=self._config.store.backup_keep) else 0
