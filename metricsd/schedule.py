"""When the daemon does what it does regularly: sync, the nightly backup, retention, and closing idle sessions.

APScheduler only says when; a due job drops its name into one bounded place and the daemon's named tasks do the work,
so that a failing job ends the daemon loudly instead of inside the scheduler. A missed time is done once, not caught
up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from metricsd.clock import US_PER_S
from metricsd.config import Config

IDLE_CHECK_MAX_S = 60.0
RETENTION_INTERVAL_S = 3600.0
"""Retention looks every hour: a laptop is seldom awake at one given hour of the night."""
_TICK = timedelta(microseconds=1)


class Chore(StrEnum):
    """What is done regularly in the store."""

    CLOSE_IDLE = "close_idle"
    RETENTION = "retention"
    BACKUP = "backup"


class Schedule:
    """The times. `on_sync` and `chores` are told when something is due."""

    def __init__(self, config: Config, on_sync: Callable[[], None]) -> None:
        self._config = config
        self._on_sync = on_sync
        self._due: dict[Chore, None] = {}
        self._wake = asyncio.Event()
        self._zone = _local_zone()
        self._scheduler = AsyncIOScheduler(
            timezone=self._zone, job_defaults={"coalesce": True, "misfire_grace_time": None}
        )

    def start(self) -> None:
        """Begin; needs a running event loop."""
        for chore, trigger in self._triggers().items():
            self._plan(chore, trigger)
        self._scheduler.start()

    def stop(self) -> None:
        """End; nothing is due any more."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def sync_at(self, at_us: int) -> None:
        """Plan the next sync for `at_us` (microseconds UTC) instead of what was planned."""
        when = datetime.fromtimestamp(at_us / US_PER_S, UTC)
        self._scheduler.add_job(self._note_sync, DateTrigger(when, timezone=UTC), id="sync", replace_existing=True)

    def look_again(self) -> None:
        """Recompute what is due, after the wall clock jumped or the machine slept."""
        if not self._scheduler.running:
            return
        self._scheduler.wakeup()
        now = datetime.now(self._zone)
        for chore, trigger in self._triggers().items():
            job = self._scheduler.get_job(chore.value)
            if job is None or job.next_run_time > trigger.get_next_fire_time(None, now):
                # It was planned while the clock was ahead: set back by years, it would not come for years.
                self._plan(chore, trigger)

    async def next_chore(self) -> Chore:
        """Return the next due chore, waiting for one; a chore that became due twice is returned once."""
        while not self._due:
            self._wake.clear()
            await self._wake.wait()
        chore = next(iter(self._due))
        del self._due[chore]
        return chore

    def _triggers(self) -> dict[Chore, BaseTrigger]:
        """Return when each chore is due, counted from now."""
        idle_s = min(max(self._config.sessions.idle_end_s / 4, 0.05), IDLE_CHECK_MAX_S)
        return {
            Chore.CLOSE_IDLE: IntervalTrigger(seconds=idle_s, timezone=self._zone),
            Chore.RETENTION: IntervalTrigger(seconds=RETENTION_INTERVAL_S, timezone=self._zone),
            Chore.BACKUP: CronTrigger(hour=self._config.store.backup_hour, minute=0, timezone=self._zone),
        }

    def _plan(self, chore: Chore, trigger: BaseTrigger) -> None:
        self._scheduler.add_job(self._note, _Skipping(trigger), args=(chore,), id=chore.value, replace_existing=True)

    # Coroutines, because the scheduler would run plain functions in threads of a pool.
    async def _note_sync(self) -> None:
        self._on_sync()

    async def _note(self, chore: Chore) -> None:
        self._due[chore] = None
        self._wake.set()


class _Skipping(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """A trigger whose missed times are skipped without being counted.

    APScheduler goes through every one of them in the event loop, and keeps them, to run the last: a board that boots in
    1970 and hears of the present would be busy for minutes and out of memory.
    """

    def __init__(self, trigger: BaseTrigger) -> None:
        self._trigger = trigger

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """Return the first time after now; after a start it may be now."""
        at = now if previous_fire_time is None else max(now, previous_fire_time) + _TICK
        found: datetime | None = self._trigger.get_next_fire_time(None, at)
        return found


def _local_zone() -> tzinfo:
    """Return the machine's zone for the hour of the backup; UTC where it has none that is known."""
    try:
        from tzlocal import get_localzone

        zone: tzinfo = get_localzone()
    except Exception:  # A broken TZ or /etc/timezone must not keep the daemon from starting.
        return UTC
    return zone
