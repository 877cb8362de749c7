"""Anomalies: where the current session differs from the last thirty days.

Corrections: the current session's pace is over its real length and its agents are its own; the older engine took six
minutes and no agents for every one, and so always reported both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from metricsd.analytics.baseline import DEFAULT
from metricsd.analytics.efficiency import success_percent
from metricsd.analytics.numbers import mean, ratio, rounded
from metricsd.analytics.velocity import velocity_of
from metricsd.totals import SessionTotal

WINDOW_DAYS = 30
LOW, HIGH, LOW_SUCCESS = 0.5, 1.5, 0.8
BUSY_COMMANDS_PER_HOUR = 10


class Anomaly(NamedTuple):
    """What differs, how much it matters, and what to do."""

    type: str
    severity: str
    message: str
    recommendation: str


def anomalies(current: SessionTotal, history: Iterable[SessionTotal]) -> list[Anomaly]:
    """Return what is unusual about the current session, against the sessions of the window; nothing without any."""
    past = list(history)
    if not past:
        return []
    usual = mean(
        (pace for pace in (velocity_of(one).commands_per_hour for one in past) if pace > 0), DEFAULT.commands_per_hour
    )
    pace = velocity_of(current).commands_per_hour
    found = [*_pace(pace, usual), *_success(current, past)]
    if current.agents == 0 and pace > BUSY_COMMANDS_PER_HOUR:
        found.append(
            Anomaly(
                "no_agent_usage", "suggestion", "No agents were used in a busy session",
                "Consider delegating self-contained tasks to an agent",
            )
        )  # fmt: skip
    return found


def _pace(pace: float, usual: float) -> list[Anomaly]:
    percent = rounded(abs(ratio(pace, usual) - 1) * 100)
    if pace < usual * LOW:
        message = f"Commands an hour are {percent:g} % below average"
        return [Anomaly("low_velocity", "warning", message, "Take a break, or look for what blocks")]
    if pace > usual * HIGH:
        message = f"Commands an hour are {percent:g} % above average"
        return [Anomaly("high_velocity", "info", message, "Note what works well in this session")]
    return []


def _success(current: SessionTotal, past: list[SessionTotal]) -> list[Anomaly]:
    usual, now = mean(map(success_percent, past)), success_percent(current)
    if current.tool_calls and now < usual * LOW_SUCCESS:
        message = f"{rounded(now):g} % of calls succeed, {rounded(usual):g} % usually do"
        return [Anomaly("low_success_rate", "alert", message, "Look at the errors of the last calls")]
    return []
