"""Daily totals, kept in the transaction of the events they count.

One row per (day, device, type, tool, project, batch, duration bucket): the buckets are a log-linear histogram, and
their sums are the totals, so counts and percentiles can never disagree. Retention drops events and keeps these.
"""

from __future__ import annotations

from metricsd.store.connection import Store

NO_DURATION = -1
LINEAR_MS = 16
"""Durations below this many milliseconds have a bucket each; above, eight buckets per doubling (at most 12.5 % wide)."""

Key = tuple[int, int, int, int, int, int, int]
"""(day, device, type, tool, project, batch, bucket)"""
Totals = list[int]
"""[n, failed, duration_ms, lines_added, lines_removed]"""

UPSERT = """
INSERT INTO rollup VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET n = n + excluded.n, failed = failed + excluded.failed,
    duration_ms = duration_ms + excluded.duration_ms,
    lines_added = lines_added + excluded.lines_added, lines_removed = lines_removed + excluded.lines_removed
"""
_DROP_EMPTY = "DELETE FROM rollup WHERE n = 0"


def bucket_of(duration_ms: int | None) -> int:
    """Return the histogram bucket of a duration; NO_DURATION for None."""
    if duration_ms is None:
        return NO_DURATION
    if duration_ms < LINEAR_MS:
        return duration_ms
    shift = duration_ms.bit_length() - 4
    return LINEAR_MS + (shift - 1) * 8 + (duration_ms >> shift) - 8


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """Return the (first, last) millisecond of a bucket >= 0."""
    if bucket < LINEAR_MS:
        return bucket, bucket
    shift, part = divmod(bucket - LINEAR_MS, 8)
    low = (part + 8) << (shift + 1)
    return low, low + (1 << (shift + 1)) - 1


def add(store: Store, totals: dict[Key, Totals], *, sign: int = 1) -> None:
    """Add (or with sign=-1 take away) totals inside the caller's transaction."""
    rows = [(*key, *(sign * value for value in values)) for key, values in totals.items()]
    store.db.executemany(UPSERT, rows)
    if sign < 0:
        store.db.execute(_DROP_EMPTY)
