"""Velocity: commands and lines an hour, and the hours themselves.

A command is a tool call, a line one that was added or removed. A stretch shorter than six minutes counts as six, by
the older rule, so that one quick call is not an hour's worth of sixty. Corrections: the length of a running session is
its real one, where the older engine always took six minutes for it and so showed "2599 % above average".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from metricsd.analytics.numbers import ratio
from metricsd.totals import SessionTotal

US_PER_HOUR = 3_600_000_000
HOURS_MIN = 0.1


class Velocity(NamedTuple):
    """Commands and changed lines an hour, over so many hours."""

    commands_per_hour: float
    lines_per_hour: float
    hours: float


def hours_of(session: SessionTotal) -> float:
    """Return a session's length in hours, up to its end or its last event."""
    ended, began = session.ended_at, session.started_at
    until = session.last_at if ended is None else ended
    return (until - began) / US_PER_HOUR if until > began else 0.0


def lines_of(session: SessionTotal) -> int:
    """Return how many lines a session changed."""
    return session.lines_added + session.lines_removed


def velocity_of(session: SessionTotal) -> Velocity:
    """Return one session's velocity."""
    hours = hours_of(session)
    over = hours if hours > HOURS_MIN else HOURS_MIN
    return Velocity(session.tool_calls / over, (session.lines_added + session.lines_removed) / over, hours)


def velocity(sessions: Iterable[SessionTotal]) -> Velocity:
    """Return the velocity of sessions together: all commands over all hours, not a mean of means."""
    found = list(sessions)
    hours = sum(map(hours_of, found))
    over = max(hours, HOURS_MIN)
    commands = sum(session.tool_calls for session in found)
    return Velocity(ratio(commands, over), ratio(sum(map(lines_of, found)), over), hours)
