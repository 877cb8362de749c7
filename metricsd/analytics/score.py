"""Productivity scores of a session, 0 to 10, and what they are made of.

Two older formulas (contract 3.3 and 6 of the hooks): `session_score` is the analytics engine's, `end_score` the one
that the hooks wrote at a session's end. Corrections to both: a session whose every call failed has success 0, where
`0 || 100` gave it full marks; a length is the real one; agents are the runs of agents, because distinct names are not
kept in totals.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from metricsd.analytics.baseline import DEFAULT, Baseline
from metricsd.analytics.efficiency import success_percent
from metricsd.analytics.numbers import clamp, mean
from metricsd.analytics.velocity import HOURS_MIN, velocity_of
from metricsd.totals import SessionTotal

SCORE_MAX = 10.0
AGENTS_FULL = 3
FOCUS_FULL_HOURS = 2.0
TRENDS = ((8.0, "excellent"), (6.0, "good"), (4.0, "average"))
NEEDS_IMPROVEMENT = "needs_improvement"
_PER_PERCENT = 10.0
"""Hand-made scores and the older API's are of 100."""


class Score(NamedTuple):
    """A score and its parts, which add up to it unless it was clamped."""

    total: float
    velocity: float
    output: float
    quality: float
    agents: float
    focus: float


def session_score(session: SessionTotal, usual: Baseline = DEFAULT) -> Score:
    """Return the analytics engine's score: at most 2.5 + 2.5 + 2 + 1.5 + 1.5."""
    parts = _parts(session, usual)
    return Score(clamp(sum(parts), 0.0, SCORE_MAX), *parts)


def end_score(session: SessionTotal, usual: Baseline = DEFAULT) -> Score:
    """Return the hooks' score at a session's end: twice the sum of five factors, clamped to 10."""
    pace = velocity_of(session)
    parts = (
        min(2.0, pace.commands_per_hour / max(usual.commands_per_hour, 1.0)),
        min(2.0, pace.lines_per_hour / max(usual.lines_per_hour, 1.0)),
        success_percent(session) / 100,
        min(2.0, session.agents / AGENTS_FULL),
        min(2.0, pace.hours),
    )
    return Score(clamp(sum(parts) * 2, 0.0, SCORE_MAX), *parts)


def percent_score(session: SessionTotal, usual: Baseline = DEFAULT) -> float:
    """Return the score of 100 that reports show: what was set by hand, else ten times the engine's."""
    if session.score is not None:
        return session.score
    return clamp(sum(_parts(session, usual)), 0.0, SCORE_MAX) * _PER_PERCENT


def mean_percent_score(sessions: Iterable[SessionTotal], usual: Baseline = DEFAULT) -> float:
    """Return the mean of `percent_score`; 0 without sessions."""
    return mean(percent_score(session, usual) for session in sessions)


def trend_of(total: float) -> str:
    """Return the word for a score of 10."""
    return next((word for low, word in TRENDS if total >= low), NEEDS_IMPROVEMENT)


def _parts(session: SessionTotal, usual: Baseline) -> tuple[float, float, float, float, float]:
    """Return the engine's five parts. A month has thousands of sessions: calls of min() would be half of the time."""
    commands, lines, hours = velocity_of(session)
    pace = commands / (usual.commands_per_hour or DEFAULT.commands_per_hour) * 2.5
    output = lines / (usual.lines_per_hour or DEFAULT.lines_per_hour) * 2.5
    agents = session.agents / AGENTS_FULL * 1.5
    focus = (hours if hours > HOURS_MIN else HOURS_MIN) / FOCUS_FULL_HOURS * 1.5
    return (
        pace if pace < 2.5 else 2.5,
        output if output < 2.5 else 2.5,
        success_percent(session) / 100 * 2,
        agents if agents < 1.5 else 1.5,
        focus if focus < 1.5 else 1.5,
    )
