"""The feed of a user on SQLite: events and counters of the other devices, and records, in the order of their changes.

Numbers become visible in their order (see the schema), so reading on after the last one skips nothing. One page is
bounded in items, in bytes and in rows looked at: the cursor also moves past the device's own items, and `more` says
that a page ended before the history did, even when it is empty. A device's own records come back to it, because it
may have been restored from a copy that is older than they are; its own counters follow from its events.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator
from typing import Any

from metricsd.cloud import paging
from metricsd.cloud.backend import FeedQuery, Writer
from metricsd.cloud.paging import NOBODY, Window, window_of
from metricsd.cloud.problems import refuse
from metricsd.cloud.sqlite_events import EVENT_COLUMNS, wire_event
from metricsd.cloud.sqlite_file import Terms
from metricsd.cloud.sqlite_records import RECORD_COLUMNS, horizon, position, record_state
from metricsd.cloud.wiretext import revision_text
from metricsd.protocol import COUNTERS, Change, ChangesReply

_AHEAD = (
    "SELECT max(change), count(*) FROM (SELECT change FROM {} WHERE user = ? AND change > ? ORDER BY change LIMIT ?)"
)
_EVENTS_AHEAD, _RECORDS_AHEAD = _AHEAD.format("event"), _AHEAD.format("record")
_EVENTS = f"""
SELECT {EVENT_COLUMNS} FROM event WHERE user = ? AND device != ? AND change > ? AND change <= ? ORDER BY change LIMIT ?
"""  # noqa: S608 - constants
_RECORDS = f"""
SELECT {RECORD_COLUMNS} FROM record WHERE user = ? AND (device != ? OR type != '{COUNTERS}') AND change > ? AND change <= ?
ORDER BY change LIMIT ?
"""  # noqa: S608 - constants


def is_known(db: sqlite3.Connection, cursor: str) -> bool:
    """Return whether a cursor is of this history. The empty one is of every history."""
    return cursor == "" or position(db, cursor) is not None


def read_page(db: sqlite3.Connection, terms: Terms, writer: Writer, query: FeedQuery, now: int) -> ChangesReply:
    """Return the next page; raise 410 `history_changed` for a cursor of another history, `cursor_expired` for an old one."""
    after = 0 if query.cursor == "" else position(db, query.cursor)
    if after is None:
        raise refuse(410, "history_changed", "the cursor is not of this cloud's history; start again without one")
    if 0 < after < horizon(db):
        raise refuse(410, "cursor_expired", "deletions behind the cursor are forgotten; start again without one")
    user = terms.find(writer.user)
    own = NOBODY if writer.device is None or query.own else terms.find(writer.device)
    window = _window(db, user, after, query.only_records)
    items: list[Change] = []
    size, last = 0, window.after
    for change, row, is_event in _rows(db, user, NOBODY if own is None else own, window, query):
        if len(items) == query.limit or size >= paging.PAGE_BYTES_MAX:
            return _page(db, items, last, True, now)
        items.append(_item(row, terms, is_event))
        size += len(row[24] or "") if is_event else len(row[5]) + len(row[6])
        last = change
    return _page(db, items, window.upto, not window.whole, now)


def _window(db: sqlite3.Connection, user: int | None, after: int, only_records: bool) -> Window:
    head: int = db.execute("SELECT change FROM counter").fetchone()[0]
    ends = [
        db.execute(ahead, (user, after, paging.ROWS_LOOKED_AT_MAX)).fetchone()
        for ahead in ((_RECORDS_AHEAD,) if only_records else (_RECORDS_AHEAD, _EVENTS_AHEAD))
    ]
    return window_of(after, head, ends)


def _rows(
    db: sqlite3.Connection, user: int | None, own: int, window: Window, query: FeedQuery
) -> Iterator[tuple[int, Any, bool]]:
    """Yield (change, row, is an event) in change order, lazily: at most one row of each table is in memory."""
    bounds = (user, own, window.after, window.upto, query.limit + 1)
    records = ((row[0], row, False) for row in db.execute(_RECORDS, bounds))
    if query.only_records:
        return records
    events = ((row[0], row, True) for row in db.execute(_EVENTS, bounds))
    return heapq.merge(events, records, key=lambda entry: entry[0])


def _item(row: Any, terms: Terms, is_event: bool) -> Change:
    device = terms.text_of(row[2])
    if is_event:
        return Change(device=device, event=wire_event(row, terms))
    return Change(device=device, record=record_state(row, terms))


def _page(db: sqlite3.Connection, items: list[Change], last: int, more: bool, now: int) -> ChangesReply:
    return ChangesReply(items=items, cursor=_cursor(db, last), more=more, server_time=now)


def _cursor(db: sqlite3.Connection, change: int) -> str:
    if change == 0:
        return ""
    nonce = db.execute(
        "SELECT nonce FROM change_log WHERE first <= ? ORDER BY first DESC LIMIT 1", (change,)
    ).fetchone()[0]
    return revision_text(change, nonce)
