"""Days and weeks: what was done in each, and how long calls took.

Percentiles come from histograms, so they are within 12.5 % of the exact value and never a mean of percentiles. A
session counts on the day it began; everything else on the day it happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from metricsd.analytics.numbers import ratio
from metricsd.totals import Cell, percentile_ms

TOOL_USED = "tool_used"
PROMPT = "prompt_submitted"
TURN = "turn_ended"
FAILED_TURN = "turn_failed"
DAYS_PER_WEEK = 7
FIRST_MONDAY = 4
"""1970-01-05 was a Monday."""


class Period(NamedTuple):
    """One stretch of local days, from `day` (since 1970) on. Times are milliseconds; percentiles are of tool calls."""

    day: int
    events: int
    sessions: int
    prompts: int
    turns: int
    failed_turns: int
    tool_calls: int
    tool_failures: int
    error_rate: float
    tool_ms: int
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    lines_added: int
    lines_removed: int


class _Sum:
    __slots__ = ("added", "by_kind", "calls", "failures", "histogram", "ms", "n", "removed")

    def __init__(self) -> None:
        self.n = self.calls = self.failures = self.ms = self.added = self.removed = 0
        self.by_kind: dict[str | None, int] = {}
        self.histogram: dict[int | None, int] = {}


def daily(cells: Iterable[Cell], starts: Mapping[int, int]) -> list[Period]:
    """Return each local day on which something happened, oldest first. Cells by day, kind and bucket."""
    return _periods(cells, starts, 1)


def weekly(cells: Iterable[Cell], starts: Mapping[int, int]) -> list[Period]:
    """Return each week, Monday to Sunday, in which something happened, oldest first."""
    return _periods(cells, starts, DAYS_PER_WEEK)


def total(cells: Iterable[Cell], starts: Mapping[int, int]) -> Period | None:
    """Return all of it as one; None when nothing happened."""
    found = _periods(cells, starts, 0)
    return found[0] if found else None


def week_of(day: int) -> int:
    """Return the Monday of a day's week."""
    return day - (day - FIRST_MONDAY) % DAYS_PER_WEEK


def _periods(cells: Iterable[Cell], starts: Mapping[int, int], length: int) -> list[Period]:
    sums: dict[int, _Sum] = {}
    for day, _, kind, _, _, bucket, n, failed, ms, added, removed in cells:
        first = _first(day, length)
        one = sums.get(first)
        if one is None:
            one = sums[first] = _Sum()
        one.n += n
        if kind == TOOL_USED:
            one.calls += n
            one.failures += failed
            one.ms += ms
            one.added += added
            one.removed += removed
            one.histogram[bucket] = one.histogram.get(bucket, 0) + n
        else:
            one.by_kind[kind] = one.by_kind.get(kind, 0) + n
    began: dict[int, int] = {}
    for day, count in starts.items():
        first = _first(day, length)
        began[first] = began.get(first, 0) + count
    days = sorted({day for day, one in sums.items() if one.n} | began.keys())
    return [_period(day, sums.get(day) or _Sum(), began.get(day, 0)) for day in days]


def _first(day: int | None, length: int) -> int:
    if day is None or length == 0:
        return 0
    return day if length == 1 else week_of(day)


def _period(day: int, one: _Sum, began: int) -> Period:
    histogram = {bucket: n for bucket, n in one.histogram.items() if bucket is not None}
    timed = sum(n for bucket, n in histogram.items() if bucket >= 0)
    return Period(
        day=day,
        events=one.n,
        sessions=began,
        prompts=one.by_kind.get(PROMPT, 0),
        turns=one.by_kind.get(TURN, 0),
        failed_turns=one.by_kind.get(FAILED_TURN, 0),
        tool_calls=one.calls,
        tool_failures=one.failures,
        error_rate=ratio(one.failures, one.calls),
        tool_ms=one.ms,
        mean_ms=one.ms / timed if timed else None,
        p50_ms=percentile_ms(histogram, 0.5),
        p95_ms=percentile_ms(histogram, 0.95),
        lines_added=one.added,
        lines_removed=one.removed,
    )
