"""Figures of both sides beside each other: the older system's eleven baseline metrics, and how alike distributions are.

The target's figures are counted from what the target holds, never derived from the source's (the older system copied
most of them, so they could not differ). All of this is an alarm column and no proof: small faults do not move a mean, and
at a million rows a test of significance would shout at differences that mean nothing, so effects are measured instead.
Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct

from metricsd.migration.figures import HOURS, Figures
from metricsd.totals import NO_DURATION, percentile_ms

PEAKS = 3
TOP_TOOLS = 10
PSI_WARN, PSI_FAIL = 0.1, 0.25
"""Usual reading of the population stability index: below 0.1 alike, above 0.25 not."""
PSI_MAX = 100.0
"""Stands for no likeness at all: one side is empty."""
KS_WARN = 0.01
"""Largest distance of two cumulative shares; an effect size, so it does not depend on how many rows there are."""
QUANTILE_WARN = 0.01
_PSI_FLOOR = 1e-6
"""A share of nothing would make the index infinite."""
_US_PER_DAY = 86_400 * 1_000_000
_MS_PER_MINUTE = 60_000
_CATEGORIES = (
    ("file", ("Read", "Write", "Edit")),
    ("search", ("Grep", "Glob", "Task")),
    ("execution", ("Bash",)),
    ("agent", ("general-purpose", "code-reviewer", "tech-lead-orchestrator")),
)
"""By part of the name, the first that fits (contract of the older system)."""


class Metric(Struct, frozen=True):
    """One baseline metric. `deviation` is relative (or, of a similarity, what is missing of 1); None where it has none.

    `level` is ok, info, warning or error.
    """

    id: str
    category: str
    source: float
    target: float
    deviation: float | None
    threshold: float
    level: str


class Likeness(Struct, frozen=True):
    """How alike a distribution is on both sides: `measure` is psi, ks, or a relative difference; `level` as above."""

    name: str
    measure: str
    value: float
    limit: float
    level: str


def metrics(source: Figures, target: Figures) -> list[Metric]:
    """Return the eleven baseline metrics with the older system's thresholds."""
    a, b = source, target
    return [
        _relative("sessions_per_day", "volume", _per_day(a), _per_day(b), 0.15, 0.30),
        _relative("tool_metrics_per_session", "volume", _ratio(a.calls, a.sessions), _ratio(b.calls, b.sessions), 0.15, 0.30),
        _relative("total_users", "volume", len(a.people), len(b.people), 0.15, 0.20),
        _relative("session_duration_minutes", "temporal", _minutes(a), _minutes(b), 0.20, 0.40),
        _relative("data_timespan_days", "temporal", _span_days(a), _span_days(b), 0.20, math.inf, low="info"),
        _similar("peak_hours_similarity", "temporal", _peaks(a), _peaks(b), 0.7, None),
        _relative("productivity_score", "quality", _ratio(a.score, a.scored), _ratio(b.score, b.scored), 0.10, 0.20),
        _relative("success_rate", "quality", 1 - _failed(a), 1 - _failed(b), 0.10, 0.15),
        _errors(_failed(a), _failed(b)),
        _similar("top_tools_similarity", "usage", _top_tools(a), _top_tools(b), 0.7, 0.5),
        _categories(a, b),
    ]  # fmt: skip


def likenesses(source: Figures, target: Figures, days: Mapping[int, tuple[int, int]]) -> list[Likeness]:
    """Return how alike calls by tool, events by day, sessions by project and durations are; `days` has both sides."""
    tools = {name: (of.calls, _calls(target, name)) for name, of in source.tools.items()}
    tools |= {name: (0, of.calls) for name, of in target.tools.items() if name not in source.tools}
    names = source.projects.keys() | target.projects.keys()
    projects = {name: (source.projects.get(name, 0), target.projects.get(name, 0)) for name in names}
    found = [
        _psi("calls by tool", tools.values()),
        _psi("events by day", days.values()),
        _psi("sessions by project", projects.values()),
    ]
    ours, theirs = source.buckets(), target.buckets()
    distance = ks(ours, theirs)
    found.append(Likeness("durations", "ks", distance, KS_WARN, "warning" if distance > KS_WARN else "ok"))
    for share, name in ((0.5, "median"), (0.95, "95th percentile"), (0.99, "99th percentile")):
        one, other = percentile_ms(ours, share), percentile_ms(theirs, share)
        off = abs((other or 0) - (one or 0)) / max(one or 0, 1)
        found.append(
            Likeness(f"{name} of durations", "relative", off, QUANTILE_WARN, "warning" if off > QUANTILE_WARN else "ok")
        )
    return found  # fmt: skip


def psi(pairs: Iterable[tuple[int, int]]) -> float:
    """Return the population stability index of two distributions, given as counts of the same classes."""
    counts = list(pairs)
    one, other = sum(a for a, _ in counts), sum(b for _, b in counts)
    if not one or not other:
        return 0.0 if one == other else PSI_MAX
    total = 0.0
    for a, b in counts:
        p, q = max(a / one, _PSI_FLOOR), max(b / other, _PSI_FLOOR)
        total += (q - p) * math.log(q / p)
    return total


def ks(one: Mapping[int, int], other: Mapping[int, int]) -> float:
    """Return the largest distance of two cumulative distributions, given as counts by bucket (Kolmogorov, Smirnov)."""
    buckets = sorted((one.keys() | other.keys()) - {NO_DURATION})
    a_all, b_all = (sum(side.get(bucket, 0) for bucket in buckets) for side in (one, other))
    if not a_all or not b_all:
        return 0.0 if a_all == b_all else 1.0
    a = b = 0
    most = 0.0
    for bucket in buckets:
        a += one.get(bucket, 0)
        b += other.get(bucket, 0)
        most = max(most, abs(a / a_all - b / b_all))
    return most


def _psi(name: str, pairs: Iterable[tuple[int, int]]) -> Likeness:
    value = psi(pairs)
    return Likeness(
        name, "psi", value, PSI_WARN, "error" if value > PSI_FAIL else "warning" if value > PSI_WARN else "ok"
    )


def _relative(
    name: str, category: str, source: float, target: float, threshold: float, severe: float, *, low: str = "warning"
) -> Metric:
    deviation = _deviation(source, target)
    off = abs(deviation)
    level = "error" if off > severe else low if off > threshold else "ok"
    return Metric(name, category, source, target, deviation if math.isfinite(deviation) else None, threshold, level)


def _similar(
    name: str, category: str, one: set[str], other: set[str], threshold: float, severe: float | None
) -> Metric:
    share = len(one & other) / max(len(one), len(other)) if one or other else 1.0
    level = "error" if severe is not None and share < severe else "warning" if share < threshold else "ok"
    return Metric(name, category, 1.0, share, 1 - share, threshold, level)


def _errors(source: float, target: float) -> Metric:
    """Return the error rate, which the older system looked at only where there are errors to speak of."""
    deviation = (target - source) / max(source, 0.01)
    level = "ok"
    if source > 0.01 and abs(deviation) > 0.10:
        level = "warning" if abs(deviation) > 0.25 else "info"
    return Metric("error_rate", "quality", source, target, deviation, 0.10, level)


def _categories(source: Figures, target: Figures) -> Metric:
    ours, theirs = _by_category(source), _by_category(target)
    names = ours.keys() | theirs.keys()
    offs = [min(abs(_deviation(ours.get(name, 0), theirs.get(name, 0))), 1.0) for name in names]
    off = sum(offs) / len(offs) if offs else 0.0
    level = "error" if off > 0.40 else "warning" if off > 0.25 else "ok"
    return Metric("category_distribution", "usage", float(len(ours)), float(len(theirs)), off, 0.25, level)


def _by_category(figures: Figures) -> dict[str, float]:
    found: dict[str, float] = {}
    calls = figures.calls
    for tool, of in figures.tools.items():
        name = next((name for name, parts in _CATEGORIES if any(part in tool for part in parts)), "none")
        found[name] = found.get(name, 0) + of.calls / calls
    return found


def _deviation(source: float, target: float) -> float:
    if source == target:
        return 0.0
    return (target - source) / source if source else math.inf


def _ratio(one: float, other: float) -> float:
    return one / other if other else 0.0


def _span_days(figures: Figures) -> float:
    if figures.first_us is None or figures.last_us is None:
        return 0.0
    return max(1.0, (figures.last_us - figures.first_us) / _US_PER_DAY)


def _per_day(figures: Figures) -> float:
    return _ratio(figures.sessions, _span_days(figures))


def _minutes(figures: Figures) -> float:
    return _ratio(figures.session_ms / _MS_PER_MINUTE, figures.ended)


def _failed(figures: Figures) -> float:
    return _ratio(figures.failed, figures.calls)


def _peaks(figures: Figures) -> set[str]:
    """Return the hours (UTC) in which most sessions begin."""
    hours = sorted(range(HOURS), key=lambda hour: (-figures.hours[hour], hour))
    return {str(hour) for hour in hours[:PEAKS] if figures.hours[hour]}


def _top_tools(figures: Figures) -> set[str]:
    return set(sorted(figures.tools, key=lambda tool: (-figures.tools[tool].calls, tool))[:TOP_TOOLS])


def _calls(figures: Figures, tool: str) -> int:
    found = figures.tools.get(tool)
    return found.calls if found is not None else 0
