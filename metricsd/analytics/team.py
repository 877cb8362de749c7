"""A team's summary: its sessions together, and who or what does most.

Sums and rates are over all sessions, not means of means. Corrections: the agents' leaderboard is counted; the older
one read a key that no summary ever had, and was always empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from metricsd.analytics.baseline import DEFAULT, Baseline
from metricsd.analytics.numbers import mean, rounded
from metricsd.analytics.score import session_score
from metricsd.analytics.velocity import lines_of, velocity
from metricsd.totals import SessionTotal

WINDOW_DAYS = 90
TOP = 10


class TeamSummary(NamedTuple):
    """The seven figures of the older dashboard; the score is of 10."""

    total_sessions: int
    avg_productivity_score: float
    total_commands: int
    total_hours: float
    total_lines_changed: int
    commands_per_hour: float
    lines_per_hour: float


def team_summary(sessions: Iterable[SessionTotal], usual: Baseline = DEFAULT) -> TeamSummary:
    """Return the summary of sessions."""
    found = list(sessions)
    pace = velocity(found)
    return TeamSummary(
        total_sessions=len(found),
        avg_productivity_score=rounded(mean(session_score(one, usual).total for one in found)),
        total_commands=sum(one.tool_calls for one in found),
        total_hours=rounded(pace.hours),
        total_lines_changed=sum(map(lines_of, found)),
        commands_per_hour=rounded(pace.commands_per_hour),
        lines_per_hour=rounded(pace.lines_per_hour),
    )


def leaderboard(counts: Mapping[str, int], top: int = TOP) -> list[tuple[str, int]]:
    """Return the names with the highest counts, the first ones; equal counts by name."""
    return sorted(((name, n) for name, n in counts.items() if n > 0), key=lambda one: (-one[1], one[0]))[:top]


def by_user(sessions: Iterable[SessionTotal]) -> dict[str, list[SessionTotal]]:
    """Return the sessions of each user; those of nobody known are under the empty name."""
    found: dict[str, list[SessionTotal]] = {}
    for session in sessions:
        found.setdefault(session.user or "", []).append(session)
    return found
