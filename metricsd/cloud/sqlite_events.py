"""Streams and events of a tenant on SQLite: what a push stores, and what a hello finds.

A stream is (device, epoch); its positions only grow. Every settled position keeps the event id it was settled with,
so that a replay answers as the first time did and a clone of the device is told from a replay. A batch that is
refused as a whole leaves nothing behind.
"""

from __future__ import annotations

import sqlite3
from itertools import chain
from typing import Any

import msgspec

from metricsd.cloud.backend import EventBatch, EventItem, EventOutcome, Writer
from metricsd.cloud.positions import Bound, Stream, continued, hello_reply, replayed
from metricsd.cloud.sqlite_file import TermIds, Terms
from metricsd.cloud.sqlite_group import Transaction
from metricsd.protocol import EventResult, HelloReply, HelloRequest, WireEvent

IDS_PER_QUERY = 500
ROWS_PER_STATEMENT = 10
"""Rows that one statement inserts. Each statement hands the interpreter over once, so ten times fewer hand-overs."""
_ROW = f"({','.join('?' * 27)})"
_INSERT_ROW = f"INSERT INTO event VALUES {_ROW}"  # noqa: S608 - question marks only
_INSERT_ROWS = f"INSERT INTO event VALUES {','.join([_ROW] * ROWS_PER_STATEMENT)}"  # noqa: S608 - the same
FIND_OWNERS = "SELECT id, device FROM event WHERE id IN ({})"
NEWEST_STREAM = "SELECT epoch, last_seq, last_id FROM device_stream WHERE device = ? ORDER BY epoch DESC LIMIT 1"
ADVANCE = (
    "INSERT INTO device_stream (device, epoch, start_seq, last_seq, last_id) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (device, epoch) DO UPDATE SET last_seq = excluded.last_seq, last_id = excluded.last_id"
)
STORED = EventResult(status="stored")
"""The result of every new event: one value, because answers hold thousands of them."""
EVENT_COLUMNS = (
    "change, id, device, seq, at, kind, name, app, session, tool, outcome, duration_ms, call, project, branch, model,"
    " agent, subject, reason, input_bytes, output_bytes, lines_added, lines_removed, batch, extra"
)


def push_events(transaction: Transaction, writer: Writer, batch: EventBatch) -> EventOutcome:
    """Store what is new of a batch; raise 409 `gap` or `stream_fork` before anything is written."""
    device = transaction.terms.id_of(batch.device_id)
    if not batch.sequenced:
        results = _store(transaction, writer, device, None, batch.items)
        stream = newest_stream(transaction.db, device)
        return EventOutcome(results, 0 if stream is None else stream.last_seq)
    stream = continued(newest_stream(transaction.db, device), batch)
    old = [item for item in batch.items if item.seq <= stream.last_seq]
    new = batch.items[len(old) :]
    again = _replay(transaction, batch, device, stream, old)
    stored = _store(transaction, writer, device, stream.epoch, new)
    last = new[-1] if new else None
    if last is not None or stream.last_id is None:
        _advance(transaction.db, device, stream, last)
    return EventOutcome(again + stored, stream.last_seq if last is None else last.seq)


def find_hello(db: sqlite3.Connection, terms: Terms, request: HelloRequest, cursor_ok: bool, now: int) -> HelloReply:
    """Return what is held of the device's newest stream. For an epoch not seen before, that is nothing."""
    device = terms.find(request.device_id)
    newest = None if device is None else newest_stream(db, device)
    bound = None if device is None else find_bound(db, device, request.epoch, request.acked_seq)
    return hello_reply(request, newest, None if bound is None else bound.key, cursor_ok=cursor_ok, now=now)


def newest_stream(db: sqlite3.Connection, device: int) -> Stream | None:
    """Return the device's stream of the highest epoch, None before its first push."""
    row = db.execute(NEWEST_STREAM, (device,)).fetchone()
    return None if row is None else Stream(*row)


def find_bound(db: sqlite3.Connection, device: int, epoch: int, seq: int) -> Bound | None:
    """Return what a position of a stream was settled with, None if nothing ever was there."""
    position = (device, epoch, seq)
    row = db.execute("SELECT id FROM event WHERE device = ? AND epoch = ? AND seq = ?", position).fetchone()
    if row is not None:
        return Bound(row[0], None)
    row = db.execute("SELECT id, reason FROM binding WHERE device = ? AND epoch = ? AND seq = ?", position).fetchone()
    return None if row is None else Bound(*row)


def wire_event(row: Any, terms: Terms) -> WireEvent:
    """Return a row of EVENT_COLUMNS as it travels."""

    def text(number: int | None) -> str | None:
        return None if number is None else terms.text_of(number)

    return WireEvent(
        id=row[1].hex(),
        seq=row[3] or 0,
        at=row[4],
        kind=terms.text_of(row[5]),
        name=terms.text_of(row[6]),
        app=terms.text_of(row[7]),
        session=text(row[8]),
        tool=text(row[9]),
        outcome=text(row[10]),
        duration_ms=row[11],
        call=row[12],
        project=text(row[13]),
        branch=text(row[14]),
        model=text(row[15]),
        agent=text(row[16]),
        subject=text(row[17]),
        reason=text(row[18]),
        input_bytes=row[19],
        output_bytes=row[20],
        lines_added=row[21],
        lines_removed=row[22],
        batch=text(row[23]),
        extra=None if row[24] is None else msgspec.json.decode(row[24], type=dict[str, int | str]),
    )


def _replay(
    transaction: Transaction, batch: EventBatch, device: int, stream: Stream, old: list[EventItem]
) -> list[EventResult]:
    db, text_of = transaction.db, transaction.terms.text_of
    owners = {key: text_of(owner) for key, owner in _owners(db, [item.key for item in old]).items()}
    bounds = {item.seq: find_bound(db, device, stream.epoch, item.seq) for item in old}
    return replayed(old, stream, bounds, owners, batch.device_id)


def _store(
    transaction: Transaction, writer: Writer, device: int, epoch: int | None, items: list[EventItem]
) -> list[EventResult]:
    """Insert what is new and bind the positions of the rest; results in the order of the items."""
    db = transaction.db
    owners = _owners(db, [item.key for item in items if item.event is not None])
    ids = transaction.terms.ids
    user = ids[writer.user]
    change = transaction.change
    results: list[EventResult] = []
    rows: list[tuple[Any, ...]] = []
    bindings: list[tuple[Any, ...]] = []
    for item in items:
        event = item.event
        if event is not None and item.key not in owners:
            owners[item.key] = device
            change += 1
            rows.append(_row(ids, (change, item.key, user, device, epoch, None if epoch is None else item.seq), event))
            results.append(STORED)
            continue
        if event is None:
            results.append(EventResult(status="rejected", reason=item.reason))
        else:
            results.append(_duplicate(transaction.terms, owners[item.key], device))
        if epoch is not None and item.seq > 0:
            bindings.append((device, epoch, item.seq, item.key, item.reason))
    transaction.change = change
    insert_events(db, rows)
    if bindings:
        db.executemany("INSERT INTO binding VALUES (?, ?, ?, ?, ?)", bindings)
    return results


def insert_events(db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    """Insert rows of `event`, in as few statements as a fixed text allows."""
    whole = len(rows) - len(rows) % ROWS_PER_STATEMENT
    groups = (rows[start : start + ROWS_PER_STATEMENT] for start in range(0, whole, ROWS_PER_STATEMENT))
    db.executemany(_INSERT_ROWS, (list(chain.from_iterable(group)) for group in groups))
    if whole < len(rows):
        db.executemany(_INSERT_ROW, rows[whole:])


def _owners(db: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, int]:
    """Return the device of each event that is already here."""
    found: dict[bytes, int] = {}
    for start in range(0, len(keys), IDS_PER_QUERY):
        part = keys[start : start + IDS_PER_QUERY]
        found.update(db.execute(FIND_OWNERS.format(",".join("?" * len(part))), part))
    return found


def _duplicate(terms: Terms, owner: int, device: int) -> EventResult:
    return EventResult(status="duplicate", device=None if owner == device else terms.text_of(owner))


def _advance(db: sqlite3.Connection, device: int, stream: Stream, last: EventItem | None) -> None:
    last_seq, last_id = (stream.last_seq, None) if last is None else (last.seq, last.key)
    db.execute(ADVANCE, (device, stream.epoch, stream.last_seq, last_seq, last_id))


def _row(ids: TermIds, position: tuple[int | bytes | None, ...], event: WireEvent) -> tuple[Any, ...]:
    """Return the columns of `event`, in the order of the table: the first six are its `position`."""
    return (
        *position,
        event.at,
        ids[event.kind],
        ids[event.name],
        ids[event.app],
        ids[event.session],
        ids[event.tool],
        ids[event.outcome],
        event.duration_ms,
        event.call,
        ids[event.project],
        ids[event.branch],
        ids[event.model],
        ids[event.agent],
        ids[event.subject],
        ids[event.reason],
        event.input_bytes,
        event.output_bytes,
        event.lines_added,
        event.lines_removed,
        ids[event.batch],
        None if event.extra is None else msgspec.json.encode(event.extra).decode(),
    )
