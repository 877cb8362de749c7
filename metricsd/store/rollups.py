"""Totals of local days and hours, kept in the transaction of the events they count.

`rollup` has one row per (day, device, type, tool, project, batch, duration bucket): the buckets are a log-linear
histogram, and their sums are the totals, so counts and percentiles can never disagree. `day_total` is the same
without tool and project, so that years of days are read in milliseconds; `hour_total` has the hours. Retention drops
events and keeps these. All three are in one time zone, the one in which the first of them was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from metricsd.store import state
from metricsd.store.calendar import Days, days_in
from metricsd.store.connection import Store
from metricsd.store.scan import bounded
from metricsd.totals import COUNTED_MAX
from metricsd.totals import NO_DURATION as NO_DURATION
from metricsd.totals import bucket_bounds as bucket_bounds
from metricsd.totals import bucket_of as bucket_of

ZONE = "rollup_zone"
"""State key: name of the time zone of all totals."""

Key = tuple[int, int, int, int, int, int, int]
"""(day, device, type, tool, project, batch, bucket)"""
_DayKey = tuple[int, int, int, int, int]
"""A Key without tool and project."""
_K = TypeVar("_K", bound=tuple[int, ...])
Totals = list[int]
"""[n, failed, duration_ms, lines_added, lines_removed]"""
HourKey = tuple[int, int, int, int]
"""(slot, device, type, batch); a slot is day * 24 + hour"""
Hours = dict[HourKey, list[int]]
"""[n, failed]"""


class Fact(NamedTuple):
    """What totals count of one event; `added` and `removed` are bounded already."""

    slot: int
    device: int
    type: int
    tool: int
    project: int
    failed: int
    duration_ms: int | None
    added: int
    removed: int


class Sums(NamedTuple):
    """What some events add up to, before it reaches the tables."""

    totals: dict[Key, Totals]
    hours: Hours

    def plus(self, e: Fact, batch: int) -> None:
        """Count one event of a batch (0: live)."""
        key = (e.slot // 24, e.device, e.type, e.tool, e.project, batch, bucket_of(e.duration_ms))
        total = self.totals.setdefault(key, [0] * 5)
        values = (1, e.failed, min(e.duration_ms or 0, COUNTED_MAX), e.added, e.removed)
        for index, value in enumerate(values):
            total[index] += value
        hour = self.hours.setdefault((e.slot, e.device, e.type, batch), [0, 0])
        hour[0] += 1
        hour[1] += e.failed


UPSERT = """
INSERT INTO rollup VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET n = n + excluded.n, failed = failed + excluded.failed,
    duration_ms = duration_ms + excluded.duration_ms,
    lines_added = lines_added + excluded.lines_added, lines_removed = lines_removed + excluded.lines_removed
"""
_UPSERT_DAY = """
INSERT INTO day_total VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET n = n + excluded.n, failed = failed + excluded.failed,
    duration_ms = duration_ms + excluded.duration_ms,
    lines_added = lines_added + excluded.lines_added, lines_removed = lines_removed + excluded.lines_removed
"""
_UPSERT_HOUR = """
INSERT INTO hour_total VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET n = n + excluded.n, failed = failed + excluded.failed
"""

_OF_DELETED = f"""
SELECT e.at, e.device, e.type, coalesce(e.tool, 0), coalesce(e.project, 0), coalesce(e.batch, 0),
    coalesce(e.outcome, 0) != 0, e.duration_ms, {bounded("e.lines_added")}, {bounded("e.lines_removed")}
FROM event AS e JOIN session AS s ON s.id = e.session
WHERE e.pos IN ({{}}) AND EXISTS (
    SELECT 1 FROM record AS r WHERE r.type = 'session' AND r.id = s.app || '/' || s.session_id AND r.deleted = 1)
"""
_KEEP_BATCHES = f"""
INSERT INTO folded_batch
SELECT session, batch, type, count(*), sum(coalesce(outcome, 0) != 0), sum({bounded("duration_ms")}),
    sum({bounded("lines_added")}), sum({bounded("lines_removed")})
FROM event WHERE pos IN ({{}}) AND batch IS NOT NULL AND session IS NOT NULL GROUP BY session, batch, type
ON CONFLICT DO UPDATE SET n = n + excluded.n, failed = failed + excluded.failed,
    duration_ms = duration_ms + excluded.duration_ms,
    lines_added = lines_added + excluded.lines_added, lines_removed = lines_removed + excluded.lines_removed
"""
_DROP_EMPTY = """
DELETE FROM rollup
WHERE n = 0 AND day = ? AND device = ? AND type = ? AND tool = ? AND project = ? AND batch = ? AND bucket = ?
"""
_DROP_EMPTY_DAY = """
DELETE FROM day_total WHERE n = 0 AND day = ? AND device = ? AND type = ? AND batch = ? AND bucket = ?
"""
_DROP_EMPTY_HOUR = """
DELETE FROM hour_total WHERE n = 0 AND day = ? AND hour = ? AND device = ? AND type = ? AND batch = ?
"""


def calendar(store: Store) -> Days:
    """Return the calendar of the totals, inside the caller's transaction: the first writer's is noted and stays.

    Somebody who moves keeps the days as they were; reports of another zone are counted from events.
    """
    noted = state.get_text(store, ZONE)
    if not noted:
        state.put(store, ZONE, store.days.name)
    elif noted != store.days.name:
        store.days = days_in(noted)
    return store.days


def add(store: Store, totals: dict[Key, Totals], hours: Hours, *, sign: int = 1) -> None:
    """Add (or with sign=-1 take away) totals inside the caller's transaction."""
    db, days = store.db, _by_day(totals)
    db.executemany(UPSERT, _signed(totals, sign))
    db.executemany(_UPSERT_DAY, _signed(days, sign))
    db.executemany(
        _UPSERT_HOUR,
        [
            (*divmod(slot, 24), device, kind, batch, sign * n, sign * failed)
            for (slot, device, kind, batch), (n, failed) in hours.items()
        ],
    )
    if sign < 0:
        db.executemany(_DROP_EMPTY, totals)
        db.executemany(_DROP_EMPTY_DAY, days)
        db.executemany(
            _DROP_EMPTY_HOUR, [(*divmod(slot, 24), device, kind, batch) for slot, device, kind, batch in hours]
        )


def before_drop(store: Store, positions_sql: str, values: tuple[int, ...]) -> None:
    """Keep of the events at these positions what their totals cannot tell, inside the transaction that drops them.

    What deleted sessions' events count leaves the totals: a reader takes it back from the rows only while they are
    there. What imported events added to their session is noted, for a retraction.
    """
    store.db.execute(_KEEP_BATCHES.format(positions_sql), values)
    days, gone = calendar(store), Sums({}, {})
    for at, device, kind, tool, project, batch, failed, duration, *lines in store.db.execute(
        _OF_DELETED.format(positions_sql), values
    ):
        gone.plus(Fact(days.slot(at), device, kind, tool, project, failed, duration, *lines), batch)
    add(store, *gone, sign=-1)


def _signed(totals: Mapping[_K, Totals], sign: int) -> list[tuple[int, ...]]:
    if sign > 0:
        return [(*key, *values) for key, values in totals.items()]
    return [(*key, *(sign * value for value in values)) for key, values in totals.items()]


def _by_day(totals: dict[Key, Totals]) -> dict[_DayKey, Totals]:
    found: dict[_DayKey, Totals] = {}
    for (day, device, kind, _tool, _project, batch, bucket), values in totals.items():
        key = (day, device, kind, batch, bucket)
        known = found.get(key)
        if known is None:
            found[key] = values.copy()
        else:
            n, failed, ms, added, removed = values
            known[0] += n
            known[1] += failed
            known[2] += ms
            known[3] += added
            known[4] += removed
    return found
