"""Dropping a tenant's events that are older than its retention, on PostgreSQL.

A dropped event leaves the id that its position was settled with, so a device that offers it again is answered as
before. Rows go in transactions of bounded size under the tenant's lock: a push now and then drops some, and the
command that sets the retention drops all that are due. Records are not touched; totals live on the devices.

What is dropped does not come back when a clock is set right, so no single clock decides. Age counts from the earlier of
two, this process's and the database's; events must have come that are from about then; and beside pushes the clocks must
have gone on for a day as clocks do. What a device says of the time of its events can keep things and never drop them.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import structlog

from metricsd.cloud.comparing import DAY_US
from metricsd.cloud.pg_pool import Db
from metricsd.cloud.pg_session import Session
from metricsd.cloud.problems import Refused

ROWS_PER_STEP = 5_000
"""Rows that one transaction drops: some tens of milliseconds."""
EVERY_S = 3600.0
LEAP_US = 7 * DAY_US
"""From one hourly look to the next: clocks that went on by more were set, or nobody pushed. Also what `about now` is."""
SETTLED_US = DAY_US
"""For how long nothing goes after a leap, or after the first look: long enough that somebody notices a wrong clock."""
_DATABASE_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_LOOK = "SELECT looked_at, steady_since FROM retention"
_NOTE = "UPDATE retention SET looked_at = $1, steady_since = $2"
# In a table in the order of time a planner hopes to meet any row soon from the start, and would read all of it for some
# of the end; ranges of blocks know where they are.
_BY_RANGES, _AS_BEFORE = "SET LOCAL enable_seqscan = off", "SET LOCAL enable_seqscan TO DEFAULT"
_IS_CURRENT = "SELECT EXISTS (SELECT 1 FROM event WHERE at BETWEEN $1 AND $2)"
_IS_DUE = "SELECT EXISTS (SELECT 1 FROM event WHERE at < $1)"
_DROP = f"""
WITH old AS (
    DELETE FROM event WHERE ctid = ANY(ARRAY(SELECT ctid FROM event WHERE at < $1 LIMIT {ROWS_PER_STEP}))
    RETURNING device, epoch, seq, id
), kept AS (
    INSERT INTO binding (device, epoch, seq, id) SELECT device, epoch, seq, id FROM old WHERE seq IS NOT NULL
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM old
"""  # noqa: S608 - a constant

log = structlog.get_logger("cloud")


class Look(NamedTuple):
    """When somebody looked, and since when the clocks have gone on steadily; zeros before the first look."""

    at: int
    steady_since: int

    def leaps_to(self, now: int) -> bool:
        """Return whether the clocks went on from this look to `now` as they do not in a week. Pure."""
        return abs(now - self.at) > LEAP_US

    def next(self, now: int) -> Look:
        """Return the look at `now` that follows this one. Pure."""
        return Look(now, now if self.leaps_to(now) else self.steady_since)

    def is_settled(self) -> bool:
        """Return whether what is old by these clocks may go. Pure."""
        return self.at - self.steady_since >= SETTLED_US


class Sweeper:
    """When a process drops a tenant's old events beside its pushes: once an hour, and again at once while some are left."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._next_at = 0.0

    async def beside_push(self, retention_days: int, now: int) -> None:
        """Drop some events if it is time to; a push is never refused for what fails here."""
        if retention_days == 0 or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + EVERY_S
        try:
            if await _look(self._session, retention_days, now) == ROWS_PER_STEP:
                self._next_at = 0.0
        except Refused as refusal:
            log.info("retention.postponed", schema=self._session.name, reason=str(refusal))


async def due_before(session: Session, retention_days: int, now: int) -> tuple[int, str | None]:
    """Return the time before which events are to go, and why the clocks that say so may be wrong; None: nothing does."""
    async with session.writing() as (db, _):
        now = await _earlier(db, now)
        horizon = now - retention_days * DAY_US
        if not await _is_there(db, _IS_DUE, horizon):
            return horizon, None
        look = Look(*await db.fetchrow(_LOOK))
        if look.at and look.leaps_to(now):
            return horizon, f"the last look was {abs(now - look.at) // DAY_US} days away from now"
        return horizon, None if await _is_current(db, now) else "no event of the tenant is from about now"


async def drop_before(session: Session, horizon: int) -> int:
    """Drop every event from before `horizon` (microseconds UTC); each step drops some, so it ends."""
    total = 0
    while True:
        async with session.writing() as (db, _):
            dropped = await _drop_some(db, horizon)
        if not dropped:
            return total
        total += dropped


async def _look(session: Session, retention_days: int, now: int) -> int:
    """Note a look, and drop some of what is old unless the clocks are in doubt; return how many rows went."""
    async with session.writing() as (db, _):
        now = await _earlier(db, now)
        look = Look(*await db.fetchrow(_LOOK)).next(now)
        await db.execute(_NOTE, *look)
        horizon = now - retention_days * DAY_US
        if look.is_settled() and await _is_there(db, _IS_DUE, horizon) and await _is_current(db, now):
            return await _drop_some(db, horizon)
    return 0


async def _earlier(db: Db, now: int) -> int:
    return min(now, int(await db.fetchval(_DATABASE_NOW)))


async def _is_current(db: Db, now: int) -> bool:
    """Return whether there is an event from about now: devices keep clocks of their own."""
    return await _is_there(db, _IS_CURRENT, now - LEAP_US, now + LEAP_US)


async def _is_there(db: Db, sql: str, *args: int) -> bool:
    """Return whether there is such an event, without reading the table for it."""
    await db.execute(_BY_RANGES)
    found = bool(await db.fetchval(sql, *args))
    await db.execute(_AS_BEFORE)
    return found


async def _drop_some(db: Db, horizon: int) -> int:
    return int(await db.fetchval(_DROP, horizon))
