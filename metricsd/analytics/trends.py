"""Trends: how scores move from day to day and from week to week.

Corrections: "week over week" compares the last seven local days with the seven before, where the older engine
compared the last seven sessions with the seven before; the older API's daily trend was two constant days.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from metricsd.analytics.numbers import mean, ratio, rounded

DAYS_PER_WEEK = 7
IMPROVING_ABOVE = 2.0
DECLINING_BELOW = -2.0
IMPROVING, DECLINING, STABLE = "improving", "declining", "stable"


class DayTrend(NamedTuple):
    """A local day (since 1970): mean score of its sessions (of 100), how many began, and the tools that were used."""

    day: int
    score: float
    sessions: int
    tools_used: tuple[str, ...]


class Change(NamedTuple):
    """How the mean score changed, in percent of what it was, and in a word."""

    percent: float
    direction: str


def daily_trend(scores: Iterable[tuple[int, float]], tools: Mapping[int, Iterable[str]]) -> list[DayTrend]:
    """Return each day on which a session began, the newest first. `scores` are (day, score) of sessions."""
    by_day: dict[int, list[float]] = {}
    for day, score in scores:
        by_day.setdefault(day, []).append(score)
    return [
        DayTrend(day, rounded(mean(by_day[day])), len(by_day[day]), tuple(sorted(set(tools.get(day, ())))))
        for day in sorted(by_day, reverse=True)
    ]


def week_over_week(scores: Iterable[tuple[int, float]], today: int) -> Change:
    """Return the change of the mean from the seven days before the last seven; none unless both have sessions."""
    found = list(scores)
    last = [score for day, score in found if today - DAYS_PER_WEEK < day <= today]
    before = [score for day, score in found if today - 2 * DAYS_PER_WEEK < day <= today - DAYS_PER_WEEK]
    if not last or not before:
        return Change(0.0, STABLE)
    percent = rounded(ratio(mean(last) - mean(before), mean(before)) * 100)
    return Change(percent, direction_of(percent))


def direction_of(percent: float) -> str:
    """Return the word for a change in percent."""
    if percent > IMPROVING_ABOVE:
        return IMPROVING
    return DECLINING if percent < DECLINING_BELOW else STABLE


def slope(values: Sequence[float]) -> float:
    """Return the least-squares slope of values at 0, 1, 2, ...; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    middle, level = (len(values) - 1) / 2, mean(values)
    above = sum((index - middle) * (value - level) for index, value in enumerate(values))
    return above / sum((index - middle) ** 2 for index in range(len(values)))
