"""Records of a tenant on SQLite: compare-and-set on the revision, one owner for derived counters.

The cloud detects a conflict and never decides one: whoever pushes on an old base gets the current version back and
resolves it at home. A push that is repeated because its answer was lost changes nothing and is answered again.
Tombstones are kept for TOMBSTONE_DAYS; a device that was away for longer is told of the deletion when it pushes.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

import msgspec

from metricsd.clock import US_PER_MS, US_PER_S
from metricsd.cloud.backend import RecordBatch, Writer
from metricsd.cloud.sqlite_file import Terms
from metricsd.cloud.sqlite_group import Transaction
from metricsd.cloud.wiretext import parse_revision, revision_text
from metricsd.hlc import Stamp, parse_stamp
from metricsd.protocol import COUNTERS, FieldValue, RecordChange, RecordResult, RecordState

STAMP_AHEAD_MS_MAX = 5 * 60 * 1000
"""How far a stamp may run ahead of the server: a wrong clock must not win for ever (DESIGN section 7)."""
TOMBSTONE_DAYS = 400
"""How long a deletion is kept for devices that are away (DESIGN section 1): a year, and a long holiday."""
EXPIRED_MAX = 1000
"""Tombstones that one push clears away: it is done on the way, so it must be short."""
_DAY_US = 86_400 * US_PER_S
RECORD_COLUMNS = "change, nonce, device, type, id, fields, stamps, deleted, stamp"
_FIND = f"SELECT {RECORD_COLUMNS} FROM record WHERE user = ? AND type = ? AND id = ?"  # noqa: S608 - a constant
_PUT = "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_EXPIRE = f"""
DELETE FROM record WHERE (user, type, id) IN
    (SELECT user, type, id FROM record WHERE deleted_at < ? ORDER BY deleted_at LIMIT {EXPIRED_MAX})
RETURNING change
"""  # noqa: S608 - a constant
_NONCE = "SELECT last, nonce FROM change_log WHERE first <= ? ORDER BY first DESC LIMIT 1"
_FIELDS = msgspec.json.Decoder(dict[str, FieldValue])
_STAMPS = msgspec.json.Decoder(dict[str, str])


class Place(NamedTuple):
    """For whom a change is made, by which device, and when by the server's clock."""

    user: int
    device: str
    now: int


class Content(NamedTuple):
    """What a record says, apart from who wrote it when."""

    fields: dict[str, FieldValue]
    stamps: dict[str, str]
    deleted: bool
    stamp: str | None


def push_records(transaction: Transaction, writer: Writer, batch: RecordBatch, now: int) -> list[RecordResult]:
    """Compare and set each item, in order; a later one sees what an earlier one did."""
    highest = Stamp(now // US_PER_MS + STAMP_AHEAD_MS_MAX, 0, batch.device_id)
    user = transaction.terms.id_of(writer.user)
    expire(transaction.db, now)
    results = []
    for item in batch.items:
        if item.change is None:
            results.append(RecordResult(status="rejected", reason=item.reason))
        elif _is_ahead(item.change, highest):
            results.append(RecordResult(status="restamp", stamp=highest.text()))
        else:
            results.append(_set(transaction, Place(user, batch.device_id, now), item.change))
    return results


def expire(db: sqlite3.Connection, now: int) -> None:
    """Clear away tombstones that are older than TOMBSTONE_DAYS, and note up to which change."""
    gone = [row[0] for row in db.execute(_EXPIRE, (now - TOMBSTONE_DAYS * _DAY_US,))]
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
        fields=_FIELDS.decode(row[5]),
        stamps=_STAMPS.decode(row[6]),
        deleted=bool(row[7]),
        stamp=row[8],
    )


def find_record(db: sqlite3.Connection, terms: Terms, user: int, kind: str, record_id: str) -> RecordState | None:
    """Return the current version of a record, None if there never was one."""
    row = db.execute(_FIND, (user, kind, record_id)).fetchone()
    return None if row is None else record_state(row, terms)


def merged(current: RecordState | None, change: RecordChange) -> Content:
    """Return the content after a change: its fields over the current ones. A tombstone keeps the fields. Pure."""
    fields = {} if current is None else current.fields
    stamps = {} if current is None else current.stamps
    return Content(
        fields | change.fields, stamps | change.stamps, change.deleted, change.stamp if change.deleted else None
    )


def is_replay(current: RecordState, change: RecordChange, content: Content, device: str) -> bool:
    """Return whether this change is already in force, so that saying so hides nothing from the device. Pure.

    That is so when the device itself wrote last (its write compared with a base it knew), when it offers the whole
    record as it stands, or when it asks whether its base still holds, by a change of nothing.
    """
    same = content == Content(current.fields, current.stamps, current.deleted, current.stamp)
    whole = change.base_rev is None and change.fields == current.fields
    return same and (current.device == device or whole or change.base_rev == current.rev)


def _set(transaction: Transaction, place: Place, change: RecordChange) -> RecordResult:
    if change.type == COUNTERS and not change.id.startswith(f"{place.device}/"):
        return RecordResult(status="rejected", reason="not_owner")
    current = find_record(transaction.db, transaction.terms, place.user, change.type, change.id)
    content = merged(current, change)
    if current is not None:
        if is_replay(current, change, content, place.device):
            return RecordResult(status="applied", rev=current.rev)
        if change.type != COUNTERS and change.base_rev != current.rev:
            return RecordResult(status="conflict", current=current)
    elif change.type != COUNTERS and change.base_rev is not None:
        missing = _missing(transaction.db, change)
        if missing is not None:
            return missing
    return RecordResult(status="applied", rev=_put(transaction, place, change, content))


def _missing(db: sqlite3.Connection, change: RecordChange) -> RecordResult | None:
    """Answer a change on a base of a record that is not here; None when it may make the record.

    A base of another history means that this database lost the record, and the fields that travel are only the
    changed ones: the device offers it whole. A base of this history means that it was deleted and the tombstone is
    gone: the device is given one, whose revision is the horizon's, and may revive the record on top of that.
    """
    known = position(db, change.base_rev or "")
    if known is None:
        return RecordResult(status="conflict")
    last = horizon(db)
    if change.deleted or last in (0, known):
        # Where nothing was ever cleared away, the base is another record's: a new one starts here.
        return None
    row = db.execute(_NONCE, (last,)).fetchone()
    gone = RecordState(type=change.type, id=change.id, rev=revision_text(last, row[1]), device="", deleted=True)
    return RecordResult(status="conflict", current=gone)


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


def _is_ahead(change: RecordChange, highest: Stamp) -> bool:
    stamps = list(change.stamps.values()) + ([] if change.stamp is None else [change.stamp])
    return any(parse_stamp(stamp)[:2] > highest[:2] for stamp in stamps)
