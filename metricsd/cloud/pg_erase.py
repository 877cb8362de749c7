"""Taking a device's data back on PostgreSQL, and refusing what would bring it again.

Rows go in transactions of bounded size, each under the tenant's lock, so that other devices' pushes wait no longer
than for a large batch of their own. Removed rows stay in the server's files until vacuum comes, as with every DELETE.
Interned words stay: they are linked to nothing, and other processes remember their numbers.
"""

from __future__ import annotations

from metricsd.cloud.backend import Erased
from metricsd.cloud.comparing import Content, deletion_stamp, is_own
from metricsd.cloud.pg_control import changed
from metricsd.cloud.pg_pool import Db
from metricsd.cloud.pg_records import RECORD_COLUMNS, Batch, Place, record_state
from metricsd.cloud.pg_session import Session

ROWS_PER_STEP = 5_000
"""Rows that one transaction removes or looks at: some tens of milliseconds."""
_SHUT = "INSERT INTO shut (device) VALUES ($1) ON CONFLICT DO NOTHING"
_STREAMS = "DELETE FROM device_stream WHERE device = $1"
_BINDINGS = f"""
DELETE FROM binding WHERE ctid = ANY(ARRAY(SELECT ctid FROM binding WHERE device = $1 LIMIT {ROWS_PER_STEP}))
"""  # noqa: S608 - a constant
_EVENTS = f"""
DELETE FROM event WHERE ctid = ANY(ARRAY(SELECT ctid FROM event WHERE device = $1 AND seq IS NOT NULL LIMIT {ROWS_PER_STEP}))
"""  # noqa: S608 - a constant
_WINDOW = f"""
SELECT max(change) FROM (SELECT change FROM {{}} WHERE person = $1 AND change > $2 ORDER BY change LIMIT {ROWS_PER_STEP}) AS next
"""  # noqa: S608 - a constant
_EVENT_WINDOW, _RECORD_WINDOW = _WINDOW.format("event"), _WINDOW.format("record")
_UNSEQUENCED = "DELETE FROM event WHERE person = $1 AND change > $2 AND change <= $3 AND device = $4"
_RECORDS = f"""
SELECT {RECORD_COLUMNS} FROM record WHERE person = $1 AND change > $2 AND change <= $3 AND device = $4 ORDER BY change
"""  # noqa: S608 - constants


async def erase_device(session: Session, user: str, device_id: str, now: int) -> Erased:
    """Remove what a device wrote, and refuse every later write of it."""
    ids = await session.terms.learn({user, device_id})
    place = Place(ids[user], ids[device_id], device_id, now)
    async with session.writing() as (db, head):
        await db.execute(_SHUT, device_id)
        await db.execute(_STREAMS, place.device)
        last = head.change
    events = await _repeat(session, _EVENTS, place.device)
    await _repeat(session, _BINDINGS, place.device)
    events += await _erase_unsequenced(session, place)
    return Erased(events, await _erase_records(session, place, last))


async def _repeat(session: Session, statement: str, device: int) -> int:
    """Run a statement until it removes nothing; each run removes some, so it ends."""
    total = 0
    while True:
        async with session.writing() as (db, _):
            removed = changed(await db.execute(statement, device))
        total += removed
        if removed == 0:
            return total


async def _erase_unsequenced(session: Session, place: Place) -> int:
    total, after = 0, 0
    while True:
        async with session.writing() as (db, _):
            upto = await db.fetchval(_EVENT_WINDOW, place.person, after)
            if upto is None:
                return total
            total += changed(await db.execute(_UNSEQUENCED, place.person, after, upto, place.device))
        after = upto


async def _erase_records(session: Session, place: Place, last: int) -> int:
    """Empty the records that the device alone wrote. Emptied ones get numbers above `last`, where the walk ends."""
    total, after = 0, 0
    while after < last:
        async with session.writing() as (db, head):
            upto = await db.fetchval(_RECORD_WINDOW, place.person, after)
            if upto is None:
                return total
            upto = min(upto, last)
            work = Batch(place, head, {})
            total += await _empty(session, db, work, place, (after, upto))
            await work.write(db)
        after = upto
    return total


async def _empty(session: Session, db: Db, work: Batch, place: Place, window: tuple[int, int]) -> int:
    rows = await db.fetch(_RECORDS, place.person, *window, place.device)
    texts = await session.terms.texts(db, {row[2] for row in rows})
    own = [record for record in (record_state(row, texts) for row in rows) if is_own(record, place.device_id)]
    for record in own:
        stamp = deletion_stamp(record, place.device_id, place.now)
        work.put(record.type, record.id, Content({}, {}, deleted=True, stamp=stamp))
    return len(own)
