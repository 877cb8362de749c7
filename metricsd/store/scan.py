"""Reads events themselves, for what totals cannot answer: a deleted session, another time zone, a full count.

Ids begin with the time of their event, so a stretch of time is a stretch of the index; events whose lines had no time
of their own are looked at as well. The rows come in no order.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator
from typing import NamedTuple

from metricsd.totals import COUNTED_MAX

MARGIN_US = 3_600 * 1_000_000
"""How far an event may lie from the time in its id; captures are within two seconds."""
_ID_MS_MAX = (1 << 48) - 1
_NO_TIME = (1).to_bytes(6, "big") + bytes(10)
"""The first id that has a time."""
_READ = """
SELECT at, type, session, tool, project, batch, outcome, duration_ms, lines_added, lines_removed FROM event
"""
_WITHIN = "(({0}id >= ? AND {0}id < ?) OR {0}id < ?)"


class Window(NamedTuple):
    """A stretch of time in microseconds UTC, `until_us` excluded."""

    from_us: int
    until_us: int


class Row(NamedTuple):
    """What totals count of one event; names are rows of their tables, 0 for none."""

    at: int
    type: int
    session: int | None
    tool: int
    project: int
    batch: int
    failed: int
    duration_ms: int | None
    lines_added: int
    lines_removed: int


def events(db: sqlite3.Connection, window: Window | None, *, without: Collection[int] = ()) -> Iterator[Row]:
    """Yield the events of a stretch of time (None: all), without those of some sessions."""
    rows = db.execute(_READ) if window is None else db.execute(f"{_READ} WHERE {_WITHIN.format('')}", _range(window))
    for row in rows:
        one = _row(row)
        if one.session not in without and (window is None or window.from_us <= one.at < window.until_us):
            yield one


def events_of(db: sqlite3.Connection, sessions: Collection[int], window: Window | None) -> Iterator[Row]:
    """Yield the events of these sessions in a stretch of time (None: all); they are picked before Python sees them."""
    where, values = ("1", ()) if window is None else within(window, "")
    sql = f"{_READ} WHERE session IN (SELECT value FROM json_each(?)) AND {where}"
    yield from map(_row, db.execute(sql, (json.dumps(sorted(sessions)), *values)))


def bounded(column: str) -> str:
    """Return the SQL of what an event's column adds to a sum."""
    return f"min(coalesce({column}, 0), {COUNTED_MAX})"


def within(window: Window, prefix: str) -> tuple[str, tuple[bytes, bytes, bytes]]:
    """Return the condition on ids, of columns with this prefix, for a stretch of time, and its values."""
    return _WITHIN.format(prefix), _range(window)


def _range(window: Window) -> tuple[bytes, bytes, bytes]:
    return _id_at(window.from_us - MARGIN_US), _id_at(window.until_us + MARGIN_US), _NO_TIME


def _id_at(at_us: int) -> bytes:
    return min(max(at_us // 1000, 0), _ID_MS_MAX).to_bytes(6, "big") + bytes(10)


def _row(
    row: tuple[
        int, int, int | None, int | None, int | None, int | None, int | None, int | None, int | None, int | None
    ],
) -> Row:
    at, kind, session, tool, project, batch, outcome, duration, added, removed = row
    return Row(
        at, kind, session, tool or 0, project or 0, batch or 0, 1 if outcome else 0,
        duration, min(added or 0, COUNTED_MAX), min(removed or 0, COUNTED_MAX),
    )  # fmt: skip
