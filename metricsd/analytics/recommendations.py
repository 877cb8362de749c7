"""Recommendations from a session's figures: the analytics engine's list, and the hooks' at a session's end.

Rules of contract 6 and 3.3 of the hooks, on true figures: the older engine saw no agents and no length of the
current session, so it always recommended agents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metricsd.analytics.baseline import DEFAULT, Baseline
from metricsd.analytics.efficiency import success_percent
from metricsd.analytics.score import end_score
from metricsd.analytics.trends import slope
from metricsd.analytics.velocity import hours_of
from metricsd.totals import SessionTotal

AGENTS_MIN = 3
COMMANDS_MANY = 10
READS_PER_EDIT_MAX = 3
SUCCESS_MIN = 90.0
SCORES = 5
SLOPE_MIN = -0.5
SHORT_HOURS = 0.5
SHORT_COMMANDS = 5


class Recommendation(NamedTuple):
    """Something to do: how urgent, of what kind, and what it would bring."""

    priority: str
    category: str
    title: str
    description: str
    action: str
    impact: str


class EndNote(NamedTuple):
    """A recommendation as the hooks wrote it at a session's end."""

    priority: str
    category: str
    message: str
    action: str


def recommendations(session: SessionTotal, tools: Mapping[str, int], scores: Sequence[float]) -> list[Recommendation]:
    """Return what the figures suggest. `tools` are calls by tool, `scores` (of 10) the last sessions', oldest first."""
    found = []
    if session.agents < AGENTS_MIN and session.tool_calls > COMMANDS_MANY:
        found.append(
            Recommendation(
                "high", "agent_usage", "Use agents", f"{session.agents} agent runs in {session.tool_calls} commands",
                "Delegate self-contained tasks", "Less to do by hand",
            )
        )  # fmt: skip
    reads, edits = tools.get("Read", 0), tools.get("Edit", 0)
    if reads > READS_PER_EDIT_MAX * edits:
        found.append(
            Recommendation(
                "medium", "workflow", "Read less for each edit", f"{reads} reads for {edits} edits",
                "Search before reading whole files", "Shorter ways to a change",
            )
        )  # fmt: skip
    success = success_percent(session)
    if session.tool_calls and success < SUCCESS_MIN:
        found.append(
            Recommendation(
                "high", "quality", "Fewer failed calls", f"{success:.1f} % of calls succeed",
                "Look at the errors that repeat", "Less done twice",
            )
        )  # fmt: skip
    if len(scores) >= SCORES and slope(scores[-SCORES:]) < SLOPE_MIN:
        found.append(
            Recommendation(
                "medium", "trend", "Scores go down", f"The last {SCORES} sessions scored less and less",
                "Compare them with a good one", "Back to the usual pace",
            )
        )  # fmt: skip
    if hours_of(session) < SHORT_HOURS and session.tool_calls < SHORT_COMMANDS:
        found.append(
            Recommendation(
                "low", "efficiency", "Longer sessions", "A short session with few commands",
                "Bundle small tasks into one session", "Less starting over",
            )
        )  # fmt: skip
    return found


def end_notes(session: SessionTotal, usual: Baseline = DEFAULT) -> list[EndNote]:
    """Return what the hooks would note at a session's end."""
    factors = end_score(session, usual)
    found = []
    if factors.velocity < 0.8:
        found.append(EndNote("medium", "productivity", "Slower than usual", "Look for what blocks"))
    if factors.agents < 0.5:
        found.append(EndNote("high", "automation", "Few agents were used", "Delegate self-contained tasks"))
    if success_percent(session) < SUCCESS_MIN:
        found.append(EndNote("high", "quality", "Many calls failed", "Look at the errors that repeat"))
    if factors.output < 0.7:
        found.append(EndNote("medium", "efficiency", "Fewer lines than usual", "Split the task into smaller ones"))
    if factors.velocity > 1.2:
        found.append(EndNote("info", "achievement", "Faster than usual", "Note what works well"))
    return found
