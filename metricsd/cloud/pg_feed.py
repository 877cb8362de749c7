"""The feed of a user on PostgreSQL: events and counters of the other devices, and records, in the order of changes.

Everything of a page is read at one moment. First come change numbers and sizes, by which the page's end is decided;
only what fits is read whole, so that memory is bounded whatever lies there.
"""

from __future__ import annotations

from metricsd.cloud import paging
from metricsd.cloud.backend import FeedQuery, Writer
from metricsd.cloud.paging import NOBODY, Window, window_of
from metricsd.cloud.pg_pool import Db
from metricsd.cloud.pg_records import NONCE, RECORD_COLUMNS, position, record_state
from metricsd.cloud.pg_rows import EVENT_COLUMNS, term_numbers, wire_event
from metricsd.cloud.pg_session import Head, Session
from metricsd.cloud.problems import refuse
from metricsd.cloud.wiretext import revision_text
from metricsd.protocol import COUNTERS, Change, ChangesReply

_AHEAD = """
SELECT max(change), count(*) FROM (
    SELECT change FROM {} WHERE person = $1 AND change > $2 ORDER BY change LIMIT $3
) AS ahead
"""
_EVENTS_AHEAD, _RECORDS_AHEAD = _AHEAD.format("event"), _AHEAD.format("record")
_OF_EVENTS = "FROM event WHERE person = $1 AND device != $2 AND change > $3 AND change <= $4 ORDER BY change LIMIT $5"
_OF_RECORDS = (
    f"FROM record WHERE person = $1 AND (device != $2 OR type != '{COUNTERS}') AND change > $3 AND change <= $4"
    " ORDER BY change LIMIT $5"
)
_RECORD_SIZES = f"SELECT change, octet_length(fields) + octet_length(stamps) AS size {_OF_RECORDS}"
_SIZES = f"""
SELECT change, size FROM (
    (SELECT change, coalesce(octet_length(extra), 0) AS size {_OF_EVENTS}) UNION ALL ({_RECORD_SIZES})
) AS both_kinds ORDER BY change LIMIT $5
"""  # noqa: S608 - constants
_EVENTS = f"SELECT {EVENT_COLUMNS} {_OF_EVENTS}"
_RECORDS = f"SELECT {RECORD_COLUMNS} {_OF_RECORDS}"


async def read_page(session: Session, writer: Writer, query: FeedQuery, now: int) -> ChangesReply:
    """Return the next page; raise 410 `history_changed` for a cursor of another history, `cursor_expired` for an old one."""
    async with session.reading() as (db, head):
        after = 0 if query.cursor == "" else await position(db, query.cursor)
        if after is None:
            raise refuse(410, "history_changed", "the cursor is not of this cloud's history; start again without one")
        if 0 < after < head.horizon:
            raise refuse(410, "cursor_expired", "deletions behind the cursor are forgotten; start again without one")
        person, own = await session.terms.find(db, writer.user, writer.device or "")
        if person is None:
            return ChangesReply(items=[], cursor=await _cursor(db, head.change), more=False, server_time=now)
        window = await _window(db, head, person, after, query.only_records)
        passed_over = NOBODY if own is None or writer.device is None or query.own else own
        bounds = (person, passed_over, window.after)
        last, cut = await _end(db, bounds, window, query)
        items = await _items(session, db, (*bounds, last, query.limit), only_records=query.only_records)
        return ChangesReply(items=items, cursor=await _cursor(db, last), more=cut or not window.whole, server_time=now)


async def _window(db: Db, head: Head, person: int, after: int, only_records: bool) -> Window:
    ends = [
        await db.fetchrow(ahead, person, after, paging.ROWS_LOOKED_AT_MAX)
        for ahead in ((_RECORDS_AHEAD,) if only_records else (_RECORDS_AHEAD, _EVENTS_AHEAD))
    ]
    return window_of(after, head.change, [(row[0], row[1]) for row in ends])


async def _end(db: Db, bounds: tuple[int, int, int], window: Window, query: FeedQuery) -> tuple[int, bool]:
    """Return the change number that the page ends with, and whether items lie behind it within the window."""
    sizes = await db.fetch(
        _RECORD_SIZES if query.only_records else _SIZES, *bounds, window.upto, query.limit + 1
    )  # fmt: skip
    total, last = 0, window.after
    for number, (change, size) in enumerate(sizes):
        if number == query.limit or total >= paging.PAGE_BYTES_MAX:
            return last, True
        total += size
        last = change
    return window.upto, False


async def _items(
    session: Session, db: Db, bounds: tuple[int, int, int, int, int], *, only_records: bool
) -> list[Change]:
    records = await db.fetch(_RECORDS, *bounds)
    events = [] if only_records else await db.fetch(_EVENTS, *bounds)
    texts = await session.terms.texts(db, term_numbers(events) | {row[2] for row in records})
    items = [(row[0], Change(device=texts[row[2]], record=record_state(row, texts))) for row in records]
    items += [(row[0], Change(device=texts[row[2]], event=wire_event(row, texts))) for row in events]
    return [item for _, item in sorted(items, key=lambda each: each[0])]


async def _cursor(db: Db, change: int) -> str:
    return "" if change == 0 else revision_text(change, (await db.fetchrow(NONCE, change))[1])
