"""Focus time: how long somebody worked with a tool, in minutes and in blocks of 25.

What an older tool noted for a session counts as noted. Otherwise a session is focused from its start to its end or
last event. Correction: sessions that overlap count once; two windows side by side are not two hours in one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from metricsd.totals import SessionTotal

BLOCK_MINUTES = 25
_US_PER_MINUTE = 60_000_000
_MS_PER_MINUTE = 60_000


def focus_minutes(sessions: Iterable[SessionTotal]) -> float:
    """Return the focus time of sessions together, in minutes."""
    noted = 0
    spans = []
    for session in sessions:
        if session.focus_ms is not None:
            noted += session.focus_ms
        else:
            until = session.last_at if session.ended_at is None else session.ended_at
            spans.append((session.started_at, max(until, session.started_at)))
    return noted / _MS_PER_MINUTE + covered_us(spans) / _US_PER_MINUTE


def covered_us(spans: Iterable[tuple[int, int]]) -> int:
    """Return how many microseconds lie in at least one of the spans."""
    covered, end = 0, None
    for start, until in sorted(spans):
        if end is None or start > end:
            covered += until - start
            end = until
        elif until > end:
            covered += until - end
            end = until
    return covered


def focus_blocks(minutes: float) -> int:
    """Return how many blocks of 25 minutes that is, rounded half up."""
    return math.floor(minutes / BLOCK_MINUTES + 0.5)
