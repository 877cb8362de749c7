"""Records of a tenant on PostgreSQL: compare-and-set on the revision, one owner for derived counters.

What is decided is decided in comparing.py; here versions are read at once, later items of a batch see what earlier
ones did, and what is to be written is written at once. The tenant's lock is held meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from metricsd.cloud.older_plans import numbered
from metricsd.cloud.pg_install import OLDER_API_STEP_NEEDED
from metricsd.cloud.pg_pool import Db
from metricsd.cloud.pg_session import Head, Session, move_head, new_nonce
from metricsd.cloud.positions import device_erased
from metricsd.cloud.wiretext import parse_revision, revision_text
from metricsd.protocol import RecordChange, RecordResult, RecordState

RECORD_COLUMNS = "change, nonce, device, type, id, fields, stamps, deleted, stamp"
NONCE = "SELECT last, nonce FROM change_log WHERE first <= $1 ORDER BY first DESC LIMIT 1"
_SHUT = "SELECT EXISTS (SELECT 1 FROM shut WHERE device = $1)"
_FIND = f"""
SELECT {RECORD_COLUMNS} FROM record
WHERE person = $1 AND (type, id) IN (SELECT type, id FROM unnest($2::text[], $3::bytea[]) AS asked (type, id))
"""  # noqa: S608 - constants
_BETWEEN = f"""
SELECT {RECORD_COLUMNS} FROM record WHERE person = $1 AND type = $2 AND id > $3 AND id < $4 ORDER BY id LIMIT $5
"""  # noqa: S608 - constants
_STEP = "SELECT step FROM head"
_RECOUNT = numbered(RECOUNT)
_PUT = """
INSERT INTO record (person, type, id, change, nonce, device, fields, stamps, deleted, stamp, deleted_at)
SELECT $1, type, id, change, $2, $3, fields, stamps, deleted, stamp, CASE WHEN deleted THEN $4::bigint END
FROM unnest($5::text[], $6::bytea[], $7::bigint[], $8::text[], $9::text[], $10::boolean[], $11::text[])
    AS new (type, id, change, fields, stamps, deleted, stamp)
ON CONFLICT (person, type, id) DO UPDATE SET change = excluded.change, nonce = excluded.nonce,
    device = excluded.device, fields = excluded.fields, stamps = excluded.stamps, deleted = excluded.deleted,
    stamp = excluded.stamp, deleted_at = excluded.deleted_at
"""
_EXPIRE = f"""
WITH gone AS (
    DELETE FROM record WHERE (person, type, id) IN (
        SELECT person, type, id FROM record WHERE deleted_at < $1 AND type != '{import_batch.TYPE}'
        ORDER BY deleted_at LIMIT {EXPIRED_MAX}
    ) RETURNING change
)
SELECT max(change) FROM gone
"""  # noqa: S608 - a constant


class Place(NamedTuple):
    """For whom changes are made, by which device, and when by the server's clock."""

    person: int
    device: int
    device_id: str
    now: int


class Batch:
    """The records that a batch is about: as they were, and as the items so far have made them."""

    def __init__(self, place: Place, head: Head, found: dict[tuple[str, str], RecordState]) -> None:
        self.head = head
        self.change = head.change
        self.nonce = new_nonce()
        self.switches = False
        """Whether other imported events count than before."""
        self._place = place
        self._records = found
        self._new: dict[tuple[str, str], tuple[int, Content]] = {}

    def current(self, change: RecordChange) -> RecordState | None:
        """Return the version that an item meets."""
        return self._records.get((change.type, change.id))

    def put(self, kind: str, record_id: str, content: Content) -> str:
        """Give a record its new content and return its revision."""
        self.change += 1
        rev = revision_text(self.change, self.nonce)
        self._records[kind, record_id] = RecordState(
            type=kind, id=record_id, rev=rev, device=self._place.device_id, fields=content.fields,
            stamps=content.stamps, deleted=content.deleted, stamp=content.stamp,
        )  # fmt: skip
        self._new[kind, record_id] = (self.change, content)
        return rev

    async def write(self, db: Db) -> None:
        """Store what the items made."""
        if not self._new:
            return
        rows = [
            (
                kind, record_id.encode(), change, msgspec.json.encode(content.fields).decode(),
                msgspec.json.encode(content.stamps).decode(), content.deleted, content.stamp,
            )
            for (kind, record_id), (change, content) in self._new.items()
        ]  # fmt: skip
        place = self._place
        await db.execute(_PUT, place.person, self.nonce, place.device, place.now, *zip(*rows, strict=True))
        await move_head(db, self.head, self.change, self.nonce)
        # A schema on an older step counts anew when it is brought up to date.
        if self.switches and await db.fetchval(_STEP) >= OLDER_API_STEP_NEEDED:
            await db.execute(_RECOUNT, place.person)


async def push_records(session: Session, writer: Writer, batch: RecordBatch, now: int) -> list[RecordResult]:
    """Compare and set each item, in order; a later one sees what an earlier one did."""
    ids = await session.terms.learn({writer.user, batch.device_id})
    place = Place(ids[writer.user], ids[batch.device_id], batch.device_id, now)
    highest = highest_stamp(now, batch.device_id)
    async with session.writing() as (db, head):
        if await db.fetchval(_SHUT, batch.device_id):
            raise device_erased()
        head = await expire(db, head, now)
        wanted = [(item.change.type, item.change.id) for item in batch.items if item.change is not None]
        work = Batch(place, head, await find_records(session, db, place.person, wanted))
        results = []
        for item in batch.items:
            if item.change is None:
                results.append(RecordResult(status="rejected", reason=item.reason))
            elif is_ahead(item.change, highest):
                results.append(RecordResult(status="restamp", stamp=highest.text()))
            else:
                results.append(await _set(db, work, batch.device_id, item.change))
        await work.write(db)
    return results


async def expire(db: Db, head: Head, now: int) -> Head:
    """Clear away tombstones that are older than TOMBSTONE_DAYS, and note up to which change.

    Not those of imports: what they take out would count again.
    """
    gone = await db.fetchval(_EXPIRE, now - TOMBSTONE_DAYS * DAY_US)
    if gone is None or gone <= head.horizon:
        return head
    await db.execute("UPDATE head SET horizon = $1", gone)
    return head._replace(horizon=gone)


async def find_records(
    session: Session, db: Db, person: int, wanted: list[tuple[str, str]]
) -> dict[tuple[str, str], RecordState]:
    """Return the current versions of records, by type and id."""
    if not wanted:
        return {}
    kinds, ids = zip(*wanted, strict=True)
    rows = await db.fetch(_FIND, person, kinds, [record_id.encode() for record_id in ids])
    texts = await session.terms.texts(db, {row[2] for row in rows})
    states = [record_state(row, texts) for row in rows]
    return {(state.type, state.id): state for state in states}


async def find_between(
    session: Session, db: Db, person: int, between: tuple[str, str, str], limit: int
) -> list[RecordState]:
    """Return the first records of (type, after, before), both ids exclusive."""
    kind, after, before = between
    rows = await db.fetch(_BETWEEN, person, kind, after.encode(), before.encode(), limit)
    texts = await session.terms.texts(db, {row[2] for row in rows})
    return [record_state(row, texts) for row in rows]


async def position(db: Db, text: str) -> int | None:
    """Return the change number of a cursor or revision; None when it is not of this history."""
    found = parse_revision(text)
    if found is None:
        return None
    change, nonce = found
    row = await db.fetchrow(NONCE, change)
    return change if row is not None and change <= row[0] and row[1] == nonce else None


def record_state(row: Any, texts: Mapping[int, str]) -> RecordState:
    """Return a row of RECORD_COLUMNS as it travels."""
    return RecordState(
        type=row[3],
        id=row[4].decode(),
        rev=revision_text(row[0], row[1]),
        device=texts[row[2]],
        fields=decode_fields(row[5]),
        stamps=decode_stamps(row[6]),
        deleted=row[7],
        stamp=row[8],
    )


async def _set(db: Db, work: Batch, device: str, change: RecordChange) -> RecordResult:
    if is_foreign(change, device):
        return RecordResult(status="rejected", reason="not_owner")
    current = work.current(change)
    content = merged(current, change)
    answer = None
    if current is not None:
        answer = answer_on(current, change, content, device)
    elif asks_for_base(change):
        answer = answer_missing(change, await _base(db, work, change), await _horizon(db, work.head))
    if answer is not None:
        return answer
    work.switches |= switches(change.type, current, content)
    return RecordResult(status="applied", rev=work.put(change.type, change.id, content))


async def _base(db: Db, work: Batch, change: RecordChange) -> int | None:
    base = change.base_rev or ""
    found = parse_revision(base)
    # An earlier item's revision is of this history already, though it is written at the end.
    if found is not None and found[0] > work.head.change:
        return found[0] if found[0] <= work.change and found[1] == work.nonce else None
    return await position(db, base)


async def _horizon(db: Db, head: Head) -> Horizon:
    if head.horizon == 0:
        return Horizon(0, 0)
    return Horizon(head.horizon, (await db.fetchrow(NONCE, head.horizon))[1])
