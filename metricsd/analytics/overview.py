"""What a dashboard shows at one glance: a user's productivity, the tools, and today beside the week.

Put together from the other figures and nothing else. Correction: the older service answered constants here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from metricsd.analytics import tools
from metricsd.analytics.baseline import DEFAULT, Baseline
from metricsd.analytics.efficiency import efficiency
from metricsd.analytics.focus import focus_minutes
from metricsd.analytics.numbers import mean, rounded
from metricsd.analytics.periods import TOOL_USED
from metricsd.analytics.score import mean_percent_score, percent_score
from metricsd.analytics.tools import Use
from metricsd.analytics.trends import DAYS_PER_WEEK, Change, DayTrend, daily_trend, week_over_week
from metricsd.analytics.velocity import velocity
from metricsd.totals import Cell, HourCell, SessionTotal

SCORES_KEPT = 8192
"""Scores that are remembered: about two months of a busy person's sessions."""
Calendar = Callable[[int], int]
"""Microseconds UTC -> the user's local day."""


class Productivity(NamedTuple):
    """Scores are of 100, velocity is commands an hour, efficiency a share; `shares` are percents of calls by tool."""

    score: float
    velocity: float
    focus_minutes: float
    efficiency: float
    shares: Mapping[str, float]
    trends: Sequence[DayTrend]


class ToolFigures(NamedTuple):
    """The tools that were used, the most used first, and when: 24 hours, 7 weekdays from Monday."""

    uses: Sequence[Use]
    by_hour: Sequence[int]
    by_weekday: Sequence[int]


class Dashboard(NamedTuple):
    """Today, the last seven days (oldest first), the tools, and how this week compares; `current` is the open session."""

    current: SessionTotal | None
    current_score: float
    sessions_today: int
    score_today: float
    tools_today: Sequence[str]
    focus_minutes_today: float
    week: Sequence[DayTrend]
    shares: Mapping[str, float]
    change: Change


def productivity(
    sessions: Sequence[SessionTotal], cells: Iterable[Cell], day_of: Calendar, usual: Baseline = DEFAULT
) -> Productivity:
    """Return the figures of these sessions and of the calls around them. Cells by day, kind and tool."""
    found = list(cells)
    scores = _scores(sessions, day_of, usual)
    return Productivity(
        score=rounded(mean(score for _, score in scores)),
        velocity=rounded(velocity(sessions).commands_per_hour),
        focus_minutes=rounded(focus_minutes(sessions)),
        efficiency=rounded(efficiency(sessions), 2),
        shares=tools.usage_shares(tools.by_tool(found)),
        trends=daily_trend(scores, tools_by_day(found)),
    )


def tool_figures(cells: Iterable[Cell], hours: Sequence[HourCell]) -> ToolFigures:
    """Return the figures of tools. Cells by kind and tool, with or without bucket."""
    return ToolFigures(tools.by_tool(cells), tools.calls_by_hour(hours), tools.calls_by_weekday(hours))


def dashboard(
    sessions: Sequence[SessionTotal], cells: Iterable[Cell], day_of: Calendar, today: int, usual: Baseline = DEFAULT
) -> Dashboard:
    """Return the overview of the last two weeks' sessions and calls. Cells by day, kind and tool."""
    found = list(cells)
    scores = _scores(sessions, day_of, usual)
    begun = [one for one, (day, _) in zip(sessions, scores, strict=True) if day == today]
    by_day = tools_by_day(found)
    week = [one for one in daily_trend(scores, by_day) if today - DAYS_PER_WEEK < one.day <= today]
    current = max((one for one in sessions if one.ended_at is None), key=lambda one: one.last_at, default=None)
    return Dashboard(
        current=current,
        current_score=0.0 if current is None else rounded(percent_score(current, usual)),
        sessions_today=len(begun),
        score_today=rounded(mean_percent_score(begun, usual)),
        tools_today=sorted(by_day.get(today, ())),
        focus_minutes_today=rounded(focus_minutes(begun)),
        week=week[::-1],
        shares=tools.usage_shares(tools.by_tool(cell for cell in found if _is_in_week(cell, today))),
        change=week_over_week(scores, today),
    )


def tools_by_day(cells: Iterable[Cell]) -> dict[int, set[str]]:
    """Return the tools that were called on each day. Cells by day, kind and tool."""
    calls: dict[tuple[int, str], int] = {}
    for cell in cells:
        if cell.kind == TOOL_USED and cell.day is not None and cell.tool is not None:
            calls[cell.day, cell.tool] = calls.get((cell.day, cell.tool), 0) + cell.n
    found: dict[int, set[str]] = {}
    for (day, tool), n in calls.items():
        if n > 0:
            found.setdefault(day, set()).add(tool)
    return found


def _scores(sessions: Iterable[SessionTotal], day_of: Calendar, usual: Baseline) -> list[tuple[int, float]]:
    return [(day_of(one.started_at), _score(one, usual)) for one in sessions]


@lru_cache(SCORES_KEPT)
def _score(session: SessionTotal, usual: Baseline) -> float:
    """Return a session's score. A dashboard asks again and again for thousands, of which one has changed."""
    return percent_score(session, usual)


def _is_in_week(cell: Cell, today: int) -> bool:
    return cell.day is not None and today - DAYS_PER_WEEK < cell.day <= today
