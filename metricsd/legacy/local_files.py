"""Indicators and baseline as the older dashboards read them: from the older hooks' files, else from true figures.

Two generations of files are understood, in snake_case and camelCase. A baseline is made of ten sessions that ended
and lasted; before there are so many the older defaults are the better guess. Correction: the original looked for
camelCase names alone and lost what the hooks' own files say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from metricsd.analytics.baseline import DEFAULT, Baseline
from metricsd.analytics.indicators import indicators
from metricsd.clock import US_PER_MS, US_PER_S
from metricsd.legacy import figures
from metricsd.legacy.kept import Figures
from metricsd.legacy.values import Json
from metricsd.totals import SessionTotal

SESSIONS_MIN = 10
LASTED_US_MIN = 60 * US_PER_S
RUNNING_US_MAX = 30 * 60 * US_PER_S
"""A session without an end that was silent for longer is not what somebody works in now."""
INDICATORS = (
    "session_id", "start_time", "baseline", "current_metrics", "last_update", "productivity_score", "trend",
)  # fmt: skip
BASELINE = (
    "average_commands_per_hour", "average_lines_per_hour", "average_success_rate", "average_focus_time_minutes",
    "average_context_switches",
)  # fmt: skip

_decode = msgspec.json.Decoder(dict[str, object]).decode


def usual_of(found: Baseline) -> Baseline:
    """Return a baseline that enough sessions make, else the default."""
    return found if found.sessions >= SESSIONS_MIN else DEFAULT


def lasting(sessions: Sequence[SessionTotal]) -> list[SessionTotal]:
    """Return the sessions that a baseline is made of: they ended, and took a minute or more."""
    return [one for one in sessions if one.ended_at is not None and one.ended_at - one.started_at >= LASTED_US_MIN]


def indicators_of(data: bytes | None, found: Figures, now_us: int) -> Json:
    """Return the data of `dashboard/indicators`."""
    kept = _fields_of(data, INDICATORS)
    if kept is not None:
        return kept
    running = [
        one
        for one in found.sessions
        if one.ended_at is None and one.tool_calls and now_us - one.last_at <= RUNNING_US_MAX
    ]
    current = max(running, key=lambda one: one.last_at, default=None)
    return figures.indicators(indicators(current, usual_of(found.usual)), now_ms=now_us // US_PER_MS)


def baseline_of(data: bytes | None, found: Figures) -> Json:
    """Return the data of `dashboard/baseline`."""
    kept = _fields_of(data, BASELINE)
    return figures.baseline(usual_of(found.usual)) if kept is None else kept


def _fields_of(data: bytes | None, names: Sequence[str]) -> Json | None:
    """Return those fields of a file that it has; None for no file, or one that cannot be read."""
    if data is None:
        return None
    try:
        file: Mapping[str, object] = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    found = {name: file.get(name, file.get(_camel(name))) for name in names}
    return {name: value for name, value in found.items() if name in file or _camel(name) in file} or None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
