"""Live indicators of the current session, in the shape that the older dashboard reads.

Corrections: counters begin at 0 and count the first call (the older file began with NaN, saved as null, and lost it);
the success rate is the true share in percent.
"""

from __future__ import annotations

from typing import NamedTuple

from metricsd.analytics.baseline import Baseline
from metricsd.analytics.efficiency import success_percent
from metricsd.analytics.focus import focus_blocks, focus_minutes
from metricsd.analytics.numbers import rounded
from metricsd.analytics.score import session_score, trend_of
from metricsd.analytics.velocity import lines_of
from metricsd.totals import SessionTotal

STARTING = "starting"


class Indicators(NamedTuple):
    """The current session at a glance; times are microseconds UTC, the score is of 10. No session: zeros, `starting`."""

    session_id: str | None
    started_at: int | None
    updated_at: int | None
    baseline: Baseline
    commands_executed: int
    lines_changed: int
    agents: int
    focus_blocks: int
    interruptions: int
    success_rate: float
    productivity_score: float
    trend: str


def indicators(session: SessionTotal | None, usual: Baseline) -> Indicators:
    """Return the indicators of a session; of none, those of a session that is about to start."""
    if session is None:
        return Indicators(None, None, None, usual, 0, 0, 0, 0, 0, 100.0, 0.0, STARTING)
    score = session_score(session, usual).total if session.tool_calls else 0.0
    return Indicators(
        session_id=session.id,
        started_at=session.started_at,
        updated_at=session.last_at,
        baseline=usual,
        commands_executed=session.tool_calls,
        lines_changed=lines_of(session),
        agents=session.agents,
        focus_blocks=focus_blocks(focus_minutes([session])),
        interruptions=session.interruptions or 0,
        success_rate=rounded(success_percent(session)),
        productivity_score=rounded(score),
        trend=trend_of(score) if session.tool_calls else STARTING,
    )
