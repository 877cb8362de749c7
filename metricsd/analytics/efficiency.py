"""Efficiency: the share of calls that did what was asked, 0 to 1.

Correction: sessions are weighed by their calls; the original answered the constant 0.85.
"""

from __future__ import annotations

from collections.abc import Iterable

from metricsd.analytics.numbers import ratio
from metricsd.totals import SessionTotal

PERCENT = 100.0


def efficiency_of(session: SessionTotal) -> float:
    """Return a session's share of good calls; 1 when it made none."""
    return ratio(session.tool_calls - session.tool_failures, session.tool_calls, 1.0)


def efficiency(sessions: Iterable[SessionTotal]) -> float:
    """Return the share of good calls of sessions together; 1 when there were none."""
    found = list(sessions)
    calls = sum(session.tool_calls for session in found)
    failures = sum(session.tool_failures for session in found)
    return ratio(calls - failures, calls, 1.0)


def success_percent(session: SessionTotal) -> float:
    """Return a session's share of good calls in percent. Correction: all failed is 0; the older hooks made it 100."""
    return efficiency_of(session) * PERCENT
