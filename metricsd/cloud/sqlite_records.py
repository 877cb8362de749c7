"""Records of a tenant on SQLite: compare-and-set on the revision, one owner for derived counters.

The cloud detects a conflict and never decides one: whoever pushes on an old base gets the current version back and
resolves it at home. A push that is repeated because its answer was lost changes nothing and is answered again.
Tombstones are kept for TOMBSTONE_DAYS; a device that was away for longer is told of the deletion when it pushes.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

import msgspec

from metricsd import import_batch
from metricsd.cloud.backend import RecordBatch, Writer
from metricsd.cloud.comparing import (
    DAY_US,
    EXPIRED_MAX,
    TOMBSTONE_DAYS,
    Content,
    Horizon,
    answer_missing,
    answer_on,
    asks_for_base,
    decode_fields,
    decode_stamps,
    highest_stamp,
    is_ahead,
    is_foreign,
    merged,
    switches,
)
from metricsd.cloud.older_fold import RECOUNT
from metricsd.cloud.sqlite_file import Terms
from metricsd.cloud.sqlite_group import Transaction
from metricsd.cloud.wiretext import parse_revision, revision_text
from metricsd.protocol import RecordChange, RecordResult, RecordState

RECORD_COLUMNS = "change, nonce, device, type, id, fields, stamps, deleted, stamp"
_FIND = f"SELECT {RECORD_COLUMNS} FROM record WHERE user = ? AND type = ? AND id = ?"  # noqa: S608 - a constant
_BETWEEN = f"""
SELECT {RECORD_COLUMNS} FROM record WHERE user = ? AND type = ? AND id > ? AND id < ? ORDER BY id LIMIT ?
"""  # noqa: S608 - a constant
_PUT = "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_EXPIRE = f"""
DELETE FROM record WHERE (user, type, id) IN (
    SELECT user, type, id FROM record WHERE deleted_at < ? AND type != '{import_batch.TYPE}'
    ORDER BY deleted_at LIMIT {EXPIRED_MAX})
RETURNING change
"""  # noqa: S608 - a constant
_NONCE = "SELECT last, nonce FROM change_log WHERE first <= ? ORDER BY first DESC LIMIT 1"


class Place(NamedTuple):
    """For whom a change is made, by which device, and when by the server's clock."""

    user: int
    device: str
    now: int


def push_records(transaction: Transaction, writer: Writer, batch: RecordBatch, now: int) -> list[RecordResult]:
    """Compare and set each item, in order; a later one sees what an earlier one did."""
    highest = highest_stamp(now, batch.device_id)
    user = transaction.terms.id_of(writer.user)
    expire(transaction.db, now)
    results = []
    for item in batch.items:
        if item.change is None:
            results.append(RecordResult(status="rejected", reason=item.reason))
        elif is_ahead(item.change, highest):
            results.append(RecordResult(status="restamp", stamp=highest.text()))
        else:
            results.append(_set(transaction, Place(user, batch.device_id, now), item.change))
    return results


def expire(db: sqlite3.Connection, now: int) -> None:
    """Clear away tombstones that are older than TOMBSTONE_DAYS, and note up to which change.

    Not those of imports: what they take out would count again.
    """
    gone = [row[0] for row in db.execute(_EXPIRE, (now - TOMBSTONE_DAYS * DAY_US,))]
    if gone:
        db.execute("UPDATE horizon SET change = max(change, ?)", (max(gone),))


def horizon(db: sqlite3.Connection) -> int:
    """Return the highest change number whose tombstone was cleared away; 0 when none was."""
    return int(db.execute("SELECT change FROM horizon").fetchone()[0])


def position(db: sqlite3.Connection, text: str) -> int | None:
    """Return the change number of a cursor or revision; None when it is not of this history."""
    found = parse_revision(text)
    if found is None:
        return None
    change, nonce = found
    row = db.execute(_NONCE, (change,)).fetchone()
    return change if row is not None and change <= row[0] and row[1] == nonce else None


def record_state(row: Any, terms: Terms) -> RecordState:
    """Return a row of RECORD_COLUMNS as it travels."""
    return RecordState(
        type=row[3],
        id=row[4],
        rev=revision_text(row[0], row[1]),
        device=terms.text_of(row[2]),
        fields=decode_fields(row[5]),
        stamps=decode_stamps(row[6]),
        deleted=bool(row[7]),
        stamp=row[8],
    )


def find_record(db: sqlite3.Connection, terms: Terms, user: int, kind: str, record_id: str) -> RecordState | None:
    """Return the current version of a record, None if there never was one."""
    row = db.execute(_FIND, (user, kind, record_id)).fetchone()
    return None if row is None else record_state(row, terms)


def find_between(
    db: sqlite3.Connection, terms: Terms, user: int, between: tuple[str, str, str], limit: int
) -> list[RecordState]:
    """Return the first records of (type, after, before), both ids exclusive."""
    return [record_state(row, terms) for row in db.execute(_BETWEEN, (user, *between, limit))]


def _set(transaction: Transaction, place: Place, change: RecordChange) -> RecordResult:
    if is_foreign(change, place.device):
        return RecordResult(status="rejected", reason="not_owner")
    current = find_record(transaction.db, transaction.terms, place.user, change.type, change.id)
    content = merged(current, change)
    answer = None
    if current is not None:
        answer = answer_on(current, change, content, place.device)
    elif asks_for_base(change):
        answer = answer_missing(change, position(transaction.db, change.base_rev or ""), _horizon_nonce(transaction.db))
    if answer is not None:
        return answer
    if switches(change.type, current, content):
        transaction.db.execute(RECOUNT, (place.user,))
    return RecordResult(status="applied", rev=_put(transaction, place, change, content))


def _horizon_nonce(db: sqlite3.Connection) -> Horizon:
    last = horizon(db)
    return Horizon(last, 0 if last == 0 else db.execute(_NONCE, (last,)).fetchone()[1])


def _put(transaction: Transaction, place: Place, change: RecordChange, content: Content) -> str:
    number = transaction.next_change()
    transaction.db.execute(
        _PUT,
        (
            place.user,
            change.type,
            change.id,
            number,
            transaction.nonce,
            transaction.terms.id_of(place.device),
            msgspec.json.encode(content.fields).decode(),
            msgspec.json.encode(content.stamps).decode(),
            int(content.deleted),
            content.stamp,
            place.now if content.deleted else None,
        ),
    )
    return revision_text(number, transaction.nonce)
