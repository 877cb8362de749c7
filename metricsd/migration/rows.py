"""The canonical form of what a migration moves: one tuple a row, the same whichever side it was read from.

Here source and target meet, so this module knows neither: no JSON, no SQL, no clock. A column says what a row *is*;
where it was read (file, line, position, batch) is no column. Three tables: `event`, `session` and `tool_metric`.
"""

from __future__ import annotations

from collections.abc import Mapping

from metricsd.migration.digest import Row

EVENT, SESSION, TOOL_METRIC = "event", "session", "tool_metric"
TABLES = (EVENT, SESSION, TOOL_METRIC)
DAY_US = 86_400 * 1_000_000
NO_DAY = -1
TOOL_USED, SESSION_STARTED, SESSION_ENDED = "tool_used", "session_started", "session_ended"

EVENT_COLUMNS = (
    "kind", "app", "name", "at", "session", "tool", "outcome", "duration_ms", "call", "project", "branch", "model",
    "agent", "subject", "reason", "input_bytes", "output_bytes", "lines_added", "lines_removed", "extra",
)  # fmt: skip
TRANSCRIPT = "Transcript"
"""Name of events from transcripts. Their project, input_bytes and output_bytes are no columns: they depend on the disk of
the machine that reads, and on the bytes that a value was written with."""
SESSION_COLUMNS = ("session", "fields", "kept")
"""`fields` are those of the session's record; `kept` is what stays on this machine: who, where, metric objects."""


def day_of(at_us: int | None) -> int:
    """Return the day of a time, in days since 1970 UTC; NO_DAY without one."""
    return NO_DAY if at_us is None else at_us // DAY_US


def flat(values: Mapping[str, object] | None) -> Row | None:
    """Return a mapping as a row: names and values in the order of the names, nested ones the same way."""
    if not values:
        return None
    found: list[object] = []
    for name in sorted(values):
        found.append(name)
        found.append(_plain(values[name]))
    return tuple(found)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return ("{", flat(value))
    if isinstance(value, list | tuple):
        return ("[", *map(_plain, value))
    # 45 and 45.0 are one number; JSON and databases do not keep them apart.
    return int(value) if isinstance(value, float) and value.is_integer() else value
