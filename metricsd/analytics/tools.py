"""Tools and projects: how often each was used, how often it failed, how long it took, and when.

Percentiles come from histograms. An error rate is failures / calls of that tool; the older hooks subtracted 1/n
points from a running rate, so that 5 failures of 15 showed as 1.1 % in place of 33.3 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from metricsd.analytics.numbers import ratio
from metricsd.analytics.periods import TOOL_USED
from metricsd.totals import Cell, HourCell, percentile_ms

HOURS = 24
DAYS_PER_WEEK = 7
THURSDAY = 3
"""Day 0, 1970-01-01, was a Thursday; Monday is 0."""
TOP = 10


class Use(NamedTuple):
    """Calls of one tool, or in one project. `name` is None for those without one; `share` is of all calls, 0 to 1."""

    name: str | None
    calls: int
    failures: int
    error_rate: float
    share: float
    total_ms: int
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    lines_added: int
    lines_removed: int


def by_tool(cells: Iterable[Cell]) -> list[Use]:
    """Return each tool that was called, the most used first. Cells by tool, kind and bucket."""
    return _uses(cells, lambda cell: cell.tool)


def by_project(cells: Iterable[Cell]) -> list[Use]:
    """Return each project in which tools were called, the busiest first. Cells by project, kind and bucket."""
    return _uses(cells, lambda cell: cell.project)


def usage_shares(uses: Iterable[Use]) -> dict[str, float]:
    """Return each tool's share of all calls in percent, one decimal."""
    return {use.name or "unknown": round(use.share * 100, 1) for use in uses}


def efficiencies(uses: Iterable[Use]) -> dict[str, float]:
    """Return each tool's share of good calls, 0 to 1."""
    return {use.name or "unknown": 1 - use.error_rate for use in uses}


def error_rates(uses: Iterable[Use]) -> dict[str, float]:
    """Return each tool's share of failed calls, 0 to 1."""
    return {use.name or "unknown": use.error_rate for use in uses}


def calls_by_hour(hours: Iterable[HourCell]) -> list[int]:
    """Return tool calls by hour of the local day: 24 counts."""
    found = [0] * HOURS
    for cell in hours:
        if cell.kind == TOOL_USED:
            found[cell.hour] += cell.n
    return found


def calls_by_weekday(hours: Iterable[HourCell]) -> list[int]:
    """Return tool calls by day of the week, Monday first: 7 counts."""
    found = [0] * DAYS_PER_WEEK
    for cell in hours:
        if cell.kind == TOOL_USED:
            found[(cell.day + THURSDAY) % DAYS_PER_WEEK] += cell.n
    return found


def _uses(cells: Iterable[Cell], name_of: Callable[[Cell], str | None]) -> list[Use]:
    sums: dict[str | None, list[int]] = {}
    histograms: dict[str | None, dict[int, int]] = {}
    for cell in cells:
        if cell.kind != TOOL_USED:
            continue
        name = name_of(cell)
        one = sums.setdefault(name, [0] * 5)
        for index, value in enumerate((cell.n, cell.failed, cell.duration_ms, cell.lines_added, cell.lines_removed)):
            one[index] += value
        if cell.bucket is not None:
            histogram = histograms.setdefault(name, {})
            histogram[cell.bucket] = histogram.get(cell.bucket, 0) + cell.n
    whole = sum(one[0] for one in sums.values())
    found = [_use(name, one, histograms.get(name, {}), whole) for name, one in sums.items() if one[0]]
    return sorted(found, key=lambda use: (-use.calls, use.name or ""))


def _use(name: str | None, one: list[int], histogram: dict[int, int], whole: int) -> Use:
    calls, failures, ms, added, removed = one
    timed = sum(n for bucket, n in histogram.items() if bucket >= 0)
    return Use(
        name=name,
        calls=calls,
        failures=failures,
        error_rate=ratio(failures, calls),
        share=ratio(calls, whole),
        total_ms=ms,
        mean_ms=ms / timed if timed else None,
        p50_ms=percentile_ms(histogram, 0.5),
        p95_ms=percentile_ms(histogram, 0.95),
        p99_ms=percentile_ms(histogram, 0.99),
        lines_added=added,
        lines_removed=removed,
    )
