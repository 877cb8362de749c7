"""Streams and events of a tenant on PostgreSQL: what a push stores, and what a hello finds.

A large batch is copied into a temporary table before the tenant's lock is taken, so that writers wait for each other's
INSERT alone. Every item has a change number reserved by its place in the batch; numbers of items that turn out to be
here already stay unused. A batch that is refused as a whole leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from metricsd.cloud.backend import EventBatch, EventItem, EventOutcome, Writer
from metricsd.cloud.pg_control import changed
from metricsd.cloud.pg_pool import Db
from metricsd.cloud.pg_rows import (
    CREATE_INCOMING,
    INCOMING_COLUMNS,
    INSERT_ARRAYS,
    INSERT_COPIED,
    incoming_rows,
    texts_of,
)
from metricsd.cloud.pg_session import HEAD_COLUMNS, LOCK, Head, Session, move_head, new_nonce
from metricsd.cloud.positions import Bound, Stream, continued, device_erased, duplicate, replayed
from metricsd.protocol import EventResult

COPIED_FROM = 200
"""Batches of this many events go through COPY; below that, making the temporary table costs more than it saves."""
_NEWEST = "SELECT epoch, last_seq, last_id FROM device_stream WHERE device = $1 ORDER BY epoch DESC LIMIT 1"
BEGIN = f"""
SELECT stream.epoch, stream.last_seq, stream.last_id, EXISTS (SELECT 1 FROM shut WHERE device = $2), {HEAD_COLUMNS}
FROM head LEFT JOIN LATERAL ({_NEWEST}) AS stream ON true
"""  # noqa: S608 - constants
_BOUNDS = """
SELECT seq, id, NULL FROM event WHERE device = $1 AND epoch = $2 AND seq = ANY($3::bigint[])
UNION ALL
SELECT seq, id, reason FROM binding WHERE device = $1 AND epoch = $2 AND seq = ANY($3::bigint[])
"""
_HERE = "SELECT id, device, change FROM event WHERE id = ANY($1::bytea[])"
_BIND = """
INSERT INTO binding (device, epoch, seq, id, reason)
SELECT $1, $2, seq, id, reason FROM unnest($3::bigint[], $4::bytea[], $5::text[]) AS bound (seq, id, reason)
"""
ADVANCE = """
INSERT INTO device_stream (device, epoch, start_seq, last_seq, last_id) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (device, epoch) DO UPDATE SET last_seq = excluded.last_seq, last_id = excluded.last_id
"""


class _Place(NamedTuple):
    """Where a batch goes: numbers of its user and device, and its rows, made before the transaction."""

    person: int
    device: int
    rows: list[tuple[Any, ...]]


async def push_events(session: Session, writer: Writer, batch: EventBatch) -> EventOutcome:
    """Store what is new of a batch; raise 409 `gap` or `stream_fork`, and nothing is stored then."""
    ids = await session.terms.learn(texts_of(batch.items) | {writer.user, batch.device_id})
    rows = incoming_rows(batch.items, ids, sequenced=batch.sequenced)
    place = _Place(ids[writer.user], ids[batch.device_id], rows)
    async with _begun(session, rows) as db:
        epoch, last_seq, last_id, shut, *head_row = await db.fetchrow(BEGIN, place.device, batch.device_id)
        head = session.checked(head_row)
        session.look_back(head)
        if shut:
            raise device_erased()
        newest = None if epoch is None else Stream(epoch, last_seq, last_id)
        if not batch.sequenced:
            results = await _store(session, db, head, place, batch, None, 0)
            return EventOutcome(results, 0 if newest is None else newest.last_seq)
        return await _push_stream(session, db, head, place, batch, continued(newest, batch))


async def find_newest(db: Db, device: int) -> Stream | None:
    """Return the device's stream of the highest epoch, None before its first push."""
    row = await db.fetchrow(_NEWEST, device)
    return None if row is None else Stream(*row)


async def find_bounds(db: Db, device: int, epoch: int, positions: Sequence[int]) -> dict[int, Bound]:
    """Return what positions of a stream were settled with, those of them where anything ever was."""
    if not positions:
        return {}
    return {row[0]: Bound(row[1], row[2]) for row in await db.fetch(_BOUNDS, device, epoch, positions)}


@asynccontextmanager
async def _begun(session: Session, rows: list[tuple[Any, ...]]) -> AsyncIterator[Db]:
    """A transaction that holds the tenant's lock, a large batch's rows being copied already."""
    if len(rows) < COPIED_FROM:
        async with session.prepared(LOCK) as db:
            yield db
        return
    async with session.prepared(CREATE_INCOMING) as db:
        await db.copy_records_to_table("incoming", records=rows, columns=INCOMING_COLUMNS)
        await db.execute(LOCK)
        yield db


async def _push_stream(
    session: Session, db: Db, head: Head, place: _Place, batch: EventBatch, stream: Stream
) -> EventOutcome:
    old = [item for item in batch.items if item.seq <= stream.last_seq]
    again = []
    if old:
        bounds = await find_bounds(db, place.device, stream.epoch, [item.seq for item in old])
        here = {key: device for key, device, _ in await db.fetch(_HERE, [item.key for item in old])}
        texts = await session.terms.texts(db, here.values())
        owners = {key: texts[device] for key, device in here.items()}
        again = replayed(old, stream, bounds, owners, batch.device_id)
    results = await _store(session, db, head, place, batch, stream.epoch, len(old))
    last = batch.items[-1] if len(old) < len(batch.items) else None
    if last is not None or stream.last_id is None:
        last_seq, last_id = (stream.last_seq, None) if last is None else (last.seq, last.key)
        await db.execute(ADVANCE, place.device, stream.epoch, stream.last_seq, last_seq, last_id)
    return EventOutcome(again + results, stream.last_seq if last is None else last.seq)


async def _store(
    session: Session, db: Db, head: Head, place: _Place, batch: EventBatch, epoch: int | None, first: int
) -> list[EventResult]:
    """Insert what is new of the items from `first` on and bind the positions of the rest; results in their order."""
    items = batch.items[first:]
    offered = sum(item.event is not None for item in items)
    # Item n of the batch has number base + n; the first new one follows the head.
    base = head.change + 1 - first
    stored = await _insert(db, base, place, epoch, first) if offered else 0
    if stored:
        await move_head(db, head, head.change + len(items), new_nonce())
    if stored == len(items):
        return [_STORED] * stored
    here = {key: (device, change) for key, device, change in await db.fetch(_HERE, _keys(items))}
    texts = await session.terms.texts(db, {device for device, _ in here.values()})
    results = []
    rest = []
    for number, item in enumerate(items, base + first):
        device, change = here.get(item.key, (0, 0))
        if item.event is not None and change == number:
            results.append(_STORED)
            continue
        rest.append(item)
        if item.event is None:
            results.append(EventResult(status="rejected", reason=item.reason))
        else:
            results.append(duplicate(texts[device], batch.device_id))
    if epoch is not None:
        await _bind(db, place.device, epoch, rest)
    return results


_STORED = EventResult(status="stored")


async def _insert(db: Db, base: int, place: _Place, epoch: int | None, first: int) -> int:
    values = (base, place.person, place.device, epoch, first)
    if len(place.rows) < COPIED_FROM:
        return changed(await db.execute(INSERT_ARRAYS, *values, *zip(*place.rows, strict=True)))
    return changed(await db.execute(INSERT_COPIED, *values))


async def _bind(db: Db, device: int, epoch: int, items: list[EventItem]) -> None:
    bound = [item for item in items if item.seq > 0]
    if bound:
        positions, keys, reasons = zip(*[(item.seq, item.key, item.reason) for item in bound], strict=True)
        await db.execute(_BIND, device, epoch, positions, keys, reasons)


def _keys(items: Sequence[EventItem]) -> list[bytes]:
    return [item.key for item in items if item.event is not None]
