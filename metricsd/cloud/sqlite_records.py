"""Records of a tenant on SQLite: compare-and-set on the revision, one owner for derived counters.

The cloud detects a conflict and never decides one: whoever pushes on an old base gets the current version back and
resolves it at home. A push that is repeated because its answer was lost changes nothing and is answered again.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

import msgspec

from metricsd.clock import US_PER_MS
from metricsd.cloud.backend import RecordBatch, Writer
from metricsd.cloud.sqlite_file import Terms
from metricsd.cloud.sqlite_group import Transaction
from metricsd.cloud.wiretext import revision_text
from metricsd.hlc import Stamp, parse_stamp
from metricsd.protocol import COUNTERS, FieldValue, RecordChange, RecordResult, RecordState

STAMP_AHEAD_MS_MAX = 5 * 60 * 1000
"""How far a stamp may run ahead of the server: a wrong clock must not win for ever (DESIGN section 7)."""
RECORD_COLUMNS = "change, nonce, device, type, id, fields, stamps, deleted, stamp"
_FIND = f"SELECT {RECORD_COLUMNS} FROM record WHERE user = ? AND type = ? AND id = ?"  # noqa: S608 - a constant
_PUT = "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FIELDS = msgspec.json.Decoder(dict[str, FieldValue])
_STAMPS = msgspec.json.Decoder(dict[str, str])


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
    results = []
    for item in batch.items:
        if item.change is None:
            results.append(RecordResult(status="rejected", reason=item.reason))
        elif _is_ahead(item.change, highest):
            results.append(RecordResult(status="restamp", stamp=highest.text()))
        else:
            results.append(_set(transaction, user, batch.device_id, item.change))
    return results


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

    That is so when the device itself wrote last (its write compared with a base it knew), or when it offers the
    whole record as it stands.
    """
    same = content == Content(current.fields, current.stamps, current.deleted, current.stamp)
    whole = change.base_rev is None and change.fields == current.fields
    return same and (current.device == device or whole)


def _set(transaction: Transaction, user: int, device: str, change: RecordChange) -> RecordResult:
    if change.type == COUNTERS and not change.id.startswith(f"{device}/"):
        return RecordResult(status="rejected", reason="not_owner")
    current = find_record(transaction.db, transaction.terms, user, change.type, change.id)
    content = merged(current, change)
    if current is not None:
        if is_replay(current, change, content, device):
            return RecordResult(status="applied", rev=current.rev)
        if change.type != COUNTERS and change.base_rev != current.rev:
            return RecordResult(status="conflict", current=current)
    return RecordResult(status="applied", rev=_put(transaction, user, device, change, content))


def _put(transaction: Transaction, user: int, device: str, change: RecordChange, content: Content) -> str:
    number = transaction.next_change()
    transaction.db.execute(
        _PUT,
        (
            user,
            change.type,
            change.id,
            number,
            transaction.nonce,
            transaction.terms.id_of(device),
            msgspec.json.encode(content.fields).decode(),
            msgspec.json.encode(content.stamps).decode(),
            int(content.deleted),
            content.stamp,
        ),
    )
    return revision_text(number, transaction.nonce)


def _is_ahead(change: RecordChange, highest: Stamp) -> bool:
    stamps = list(change.stamps.values()) + ([] if change.stamp is None else [change.stamp])
    return any(parse_stamp(stamp)[:2] > highest[:2] for stamp in stamps)
