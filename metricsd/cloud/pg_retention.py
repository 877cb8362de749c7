"""Dropping a tenant's events that are older than its retention, on PostgreSQL.

A dropped event leaves the id that its position was settled with, so a device that offers it again is answered as
before. Rows go in transactions of bounded size under the tenant's lock: a push now and then drops some, and the
command that sets the retention drops all that are due. Records are not touched; totals live on the devices.
"""

from __future__ import annotations

import time

import structlog

from metricsd.cloud.comparing import DAY_US
from metricsd.cloud.pg_session import Session
from metricsd.cloud.problems import Refused

ROWS_PER_STEP = 5_000
"""Rows that one transaction drops: some tens of milliseconds."""
EVERY_S = 3600.0
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
            if await drop_some(self._session, retention_days, now) == ROWS_PER_STEP:
                self._next_at = 0.0
        except Refused as refusal:
            log.info("retention.postponed", schema=self._session.name, reason=str(refusal))


async def drop_some(session: Session, retention_days: int, now: int) -> int:
    """Drop at most ROWS_PER_STEP events older than `retention_days` at `now` (microseconds UTC); return how many."""
    async with session.writing() as (db, _):
        return int(await db.fetchval(_DROP, now - retention_days * DAY_US))


async def drop_all(session: Session, retention_days: int, now: int) -> int:
    """Drop every event that is due; each step drops some, so it ends."""
    total = 0
    while dropped := await drop_some(session, retention_days, now):
        total += dropped
    return total
