"""A tenant's file as a whole on SQLite: its export in change order, its figures, and its end.

An export reads page by page in short transactions, so that it never keeps the log from being folded in. What changes
meanwhile comes again behind, with its newer number.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metricsd.cloud.backend import Exported, TenantStats
from metricsd.cloud.sqlite_erase import EVERYONE
from metricsd.cloud.sqlite_events import EVENT_COLUMNS, wire_event
from metricsd.cloud.sqlite_file import Terms, open_file
from metricsd.cloud.sqlite_records import RECORD_COLUMNS, record_state
from metricsd.schema import load_steps

PAGE_BYTES_MAX = 8 * 1024 * 1024
"""Texts in one page: a thousand records of the largest size must not be built in memory."""
SUFFIXES = ("", "-wal")
_EVENTS = f"SELECT {EVENT_COLUMNS}, user FROM event WHERE change > ? ORDER BY change LIMIT ?"  # noqa: S608 - a constant
# Records are indexed by (user, change): each user's come in order, and there are few users.
_RECORDS = f"SELECT {RECORD_COLUMNS}, user FROM record WHERE user = ? AND change > ? ORDER BY change LIMIT ?"  # noqa: S608
_USERS = """
WITH RECURSIVE owner (user) AS (
    SELECT min(user) FROM record
    UNION ALL SELECT (SELECT min(user) FROM record WHERE record.user > owner.user) FROM owner WHERE owner.user IS NOT NULL
)
SELECT user FROM owner WHERE user IS NOT NULL
"""
_STATS = """
SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM record WHERE deleted = 0),
       (SELECT count(*) FROM record WHERE deleted = 1), (SELECT change FROM counter)
"""
_TABLES = ("event", "binding", "device_stream", "record", "policy", "change_log", "term")


def read_export(db: sqlite3.Connection, terms: Terms, after: int, limit: int) -> list[Exported]:
    """Return the next events and records behind `after`, in change order; [] at the end."""
    page: list[Exported] = []
    size = 0
    for row, is_event in heapq.merge(
        _events(db, after, limit), _records(db, after, limit), key=lambda each: each[0][0]
    ):
        if len(page) == limit or size >= PAGE_BYTES_MAX:
            break
        page.append(_exported(row, terms, is_event))
        size += len(row[24] or "") if is_event else len(row[5]) + len(row[6])
    return page


def read_stats(db: sqlite3.Connection, path: Path) -> TenantStats:
    """Return how much the file holds."""
    events, records, tombstones, change = db.execute(_STATS).fetchone()
    return TenantStats(
        events=events, records=records, tombstones=tombstones, size_bytes=size_of(path), change=change
    )  # fmt: skip


def size_of(path: Path) -> int:
    """Return the bytes of a database's files; a missing one has none."""
    files = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    return sum(file.stat().st_size for file in files if file.exists())


def destroy(path: Path) -> None:
    """Empty a tenant's file, so that a process that has it open holds nothing either, and remove it. Blocks."""
    if path.exists():
        writing, reading = open_file(path, load_steps("metricsd.cloud.schema.tenant"))
        reading.close()
        try:
            _empty(writing)
        finally:
            writing.close()
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink(missing_ok=True)


def _empty(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        # First of all nobody may write any more: others wait for this transaction and then see it.
        db.execute("INSERT INTO shut VALUES (?) ON CONFLICT DO NOTHING", (EVERYONE,))
        for table in _TABLES:
            db.execute(f"DELETE FROM {table}")  # noqa: S608 - a constant
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("VACUUM")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _events(db: sqlite3.Connection, after: int, limit: int) -> Iterator[tuple[Any, bool]]:
    return ((row, True) for row in db.execute(_EVENTS, (after, limit)))


def _records(db: sqlite3.Connection, after: int, limit: int) -> Iterator[tuple[Any, bool]]:
    users = [row[0] for row in db.execute(_USERS)]
    streams = [db.execute(_RECORDS, (user, after, limit)) for user in users]
    return ((row, False) for row in heapq.merge(*streams, key=lambda row: row[0]))


def _exported(row: Any, terms: Terms, is_event: bool) -> Exported:
    user, device = terms.text_of(row[-1]), terms.text_of(row[2])
    if is_event:
        return Exported(change=row[0], user=user, device=device, event=wire_event(row, terms))
    return Exported(change=row[0], user=user, device=device, record=record_state(row, terms))
