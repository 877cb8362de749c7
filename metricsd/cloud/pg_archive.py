"""A tenant's schema as a whole on PostgreSQL: its export in change order, its figures, and which events it has.

An export reads page by page in short transactions, so that it never holds up the removal of dead rows. What changes
meanwhile comes again behind, with its newer number.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from metricsd.cloud import paging
from metricsd.cloud.backend import Exported, TenantStats, Writer
from metricsd.cloud.paging import NOBODY
from metricsd.cloud.pg_pool import Db
from metricsd.cloud.pg_records import RECORD_COLUMNS, record_state
from metricsd.cloud.pg_rows import EVENT_COLUMNS, term_numbers, wire_event
from metricsd.cloud.pg_session import Session
from metricsd.ids import EVENT_ID_BYTES
from metricsd.protocol import HaveReply, HaveRequest, IdRange, RangeDigest

_SIZES = """
SELECT change, size FROM (
    SELECT change, coalesce(octet_length(extra), 0) AS size FROM event WHERE change > $1 AND change <= $2
    UNION ALL
    SELECT change, octet_length(fields) + octet_length(stamps) FROM record WHERE change > $1 AND change <= $2
) AS both_kinds ORDER BY change LIMIT $3
"""
_EVENTS = f"SELECT {EVENT_COLUMNS} FROM event WHERE change > $1 AND change <= $2"  # noqa: S608 - constants
_RECORDS = f"SELECT {RECORD_COLUMNS}, person FROM record WHERE change > $1 AND change <= $2"  # noqa: S608 - constants
SIZE = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
WHERE relnamespace = $1::text::regnamespace AND relkind = 'r'
"""
_STATS = f"""
SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM record WHERE NOT deleted),
       (SELECT count(*) FROM record WHERE deleted), ({SIZE})
"""  # noqa: S608 - constants
_HELD = "SELECT id FROM event WHERE person = $1 AND id = ANY($2::bytea[])"
_RANGE = "SELECT id, person FROM event WHERE id BETWEEN $1 AND $2 ORDER BY id LIMIT $3"


async def read_export(session: Session, after: int, limit: int) -> list[Exported]:
    """Return the next events and records behind `after`, in change order; [] at the end."""
    async with session.reading() as (db, head):
        last = await _page_end(db, after, head.change, limit)
        events = await db.fetch(_EVENTS, after, last)
        records = await db.fetch(_RECORDS, after, last)
        texts = await session.terms.texts(
            db, term_numbers(events) | {row[2] for row in records} | {row[9] for row in records}
        )
    page = [
        Exported(change=row[0], user=texts[row[1]], device=texts[row[2]], event=wire_event(row, texts))
        for row in events
    ]
    page += [
        Exported(change=row[0], user=texts[row[9]], device=texts[row[2]], record=record_state(row, texts))
        for row in records
    ]
    return sorted(page, key=lambda each: each.change)


async def read_stats(session: Session) -> TenantStats:
    """Return how much the schema holds."""
    async with session.reading() as (db, head):
        events, records, tombstones, size = await db.fetchrow(_STATS, session.name)
    return TenantStats(
        events=events, records=records, tombstones=tombstones, size_bytes=size, change=head.change
    )  # fmt: skip


async def find_have(session: Session, writer: Writer, asked: HaveRequest, rows_max: int) -> HaveReply:
    """Return what is missing of `ids`, and digests of the ranges as far as `rows_max` rows reach."""
    async with session.reading() as (db, _):
        [found] = await session.terms.find(db, writer.user)
        person = NOBODY if found is None else found
        keys = [bytes.fromhex(text) for text in asked.ids]
        held = {bytes(row[0]) for row in await db.fetch(_HELD, person, keys)} if keys else set()
        digests: list[RangeDigest] = []
        rows_left = rows_max
        for each in asked.ranges:
            digest, looked_at = await _digest(db, person, each, rows_left)
            digests.append(digest)
            rows_left -= looked_at
            if digest.through is not None or rows_left <= 0:
                break
    missing = [text for text, key in zip(asked.ids, keys, strict=True) if key not in held]
    return HaveReply(missing=missing, ranges=digests)


async def _page_end(db: Db, after: int, head: int, limit: int) -> int:
    """Return the change number that a page ends with.

    The rows of a range of numbers are found without an index over all, because they lie together; ranges that hold
    nothing (numbers that were never used, or whose rows are gone) are passed over ever faster.
    """
    width = limit
    while after < head:
        sizes = await db.fetch(_SIZES, after, after + width, limit)
        if sizes:
            return _last_that_fits(sizes)
        after += width
        width *= 4
    return head


def _last_that_fits(sizes: Sequence[tuple[int, int]]) -> int:
    total = last = 0
    for change, size in sizes:
        if total >= paging.PAGE_BYTES_MAX:
            break
        total += size
        last = change
    return last


async def _digest(db: Db, person: int, wanted: IdRange, rows_max: int) -> tuple[RangeDigest, int]:
    """Return a range's digest over the first `rows_max` rows, and how many rows were looked at."""
    ids = blake2b(digest_size=EVENT_ID_BYTES)
    rows = await db.fetch(_RANGE, bytes.fromhex(wanted.first), bytes.fromhex(wanted.last), rows_max + 1)
    own = [key for key, owner in rows[:rows_max] if owner == person]
    for key in own:
        ids.update(key)
    through = rows[rows_max - 1][0].hex() if len(rows) > rows_max else None
    return RangeDigest(count=len(own), digest=ids.hexdigest(), through=through), min(len(rows), rows_max)
