"""The baseline: a person's usual pace, from their last thirty sessions, to measure a session against.

Corrections: the success rate is in percent everywhere (the default used to be the fraction 0.92 and the rest a
percent), focus time is computed too (it stayed 45 for ever), and a session that failed at everything counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metricsd.analytics.efficiency import success_percent
from metricsd.analytics.focus import focus_minutes
from metricsd.analytics.numbers import mean
from metricsd.analytics.velocity import hours_of, lines_of
from metricsd.totals import SessionTotal

SESSIONS_MAX = 30


class Baseline(NamedTuple):
    """What is usual. `success_rate` is a percent, `sessions` how many it was made of."""

    commands_per_hour: float = 15.0
    lines_per_hour: float = 120.0
    success_rate: float = 92.0
    focus_minutes: float = 45.0
    context_switches: float = 3.0
    sessions: int = 0


DEFAULT = Baseline()


def baseline(sessions: Sequence[SessionTotal]) -> Baseline:
    """Return the baseline of the newest thirty sessions that took any time; the default when there are none."""
    found = sorted(sessions, key=lambda one: (one.started_at, one.id))[-SESSIONS_MAX:]
    hours = sum(map(hours_of, found))
    if hours <= 0:
        return DEFAULT
    return Baseline(
        commands_per_hour=sum(one.tool_calls for one in found) / hours,
        lines_per_hour=sum(map(lines_of, found)) / hours,
        success_rate=mean(map(success_percent, found)),
        focus_minutes=mean(focus_minutes([one]) for one in found),
        sessions=len(found),
    )
