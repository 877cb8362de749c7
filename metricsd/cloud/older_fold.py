"""Adds a user's events up for the older API, from where the last look ended: exact, because numbers only grow.

Change numbers become visible in their order, so what lies behind the mark is exactly what is not counted yet. One step
is a bounded number of events in one transaction; a step that is repeated after a lost answer begins at the new mark.
What adds up so cannot be taken back, because a session has its earliest and latest: when an import is retracted, or
counts again, the mark says so in the record's own transaction, and the next look empties the sums and counts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metricsd.cloud.older_plans import Ask, Many, Plan, Words
from metricsd.cloud.older_retracted import retracted
from metricsd.totals import COUNTED_MAX, bucket_of

STEP = 5_000
"""Events of one step: some tens of milliseconds, for which other writers of the tenant wait."""
FOLDS_MAX = 100
"""Steps that one request takes at most: half a million events, some seconds; the next request goes on there."""
EMPTY_STEP = 20_000
"""Rows of sums that one step removes before it counts anew."""
HOUR_US = 3_600 * 1_000_000
HOURS = 24
TOOL_USED = "tool_used"
_ENDED = "session_ended"
_COUNTED = {"session_started": 0, "prompt_submitted": 1, "turn_ended": 2, TOOL_USED: 3, "subagent_ended": 8}
"""Kind -> which of a session's numbers it adds to."""

_MARK = "SELECT through, stale FROM legacy_fold WHERE person = ?"
_AHEAD = "SELECT 1 FROM event WHERE {person} = ? AND change > ? LIMIT 1"
_EVENTS = f"""
SELECT change, at, kind, app, session, tool, outcome, duration_ms, lines_added, lines_removed, branch, project, model,
    batch, id
FROM event WHERE {{person}} = ? AND change > ? ORDER BY change LIMIT {STEP}
"""  # noqa: S608 - a constant
_MOVE = """
INSERT INTO legacy_fold (person, through, anew) VALUES (?, ?, 0)
ON CONFLICT (person) DO UPDATE SET through = excluded.through
"""
SESSION_COLUMNS = (
    "session, app, first, started_at, last_at, end_at, active_at, branch, project, model, starts, prompts, turns,"
    " tool_calls, tool_failures, tool_ms, lines_added, lines_removed, agents"
)
_NUMBERS = (
    "starts", "prompts", "turns", "tool_calls", "tool_failures", "tool_ms", "lines_added", "lines_removed", "agents",
)  # fmt: skip
_LATEST = ", ".join(
    f"{name} = CASE WHEN excluded.{name} > s.{name} THEN excluded.{name} ELSE s.{name} END"
    for name in ("last_at", "end_at", "active_at")
)
_ADDED = ", ".join(f"{name} = s.{name} + excluded.{name}" for name in _NUMBERS)
_TOLD = ", ".join(f"{name} = coalesce(excluded.{name}, s.{name})" for name in ("branch", "project", "model"))
_PUT_SESSION = f"""
INSERT INTO legacy_session AS s (person, {SESSION_COLUMNS}) VALUES ({", ".join("?" * 20)})
ON CONFLICT (person, session, app) DO UPDATE SET
    started_at = CASE WHEN excluded.started_at < s.started_at THEN excluded.started_at ELSE s.started_at END,
    {_LATEST}, {_TOLD}, {_ADDED}
"""  # noqa: S608 - constants
_SUMS = ("n", "failed", "duration_ms", "lines_added", "lines_removed")
_PUT_CELL = f"""
INSERT INTO legacy_cell AS c (person, day, kind, tool, bucket, {", ".join(_SUMS)}) VALUES ({", ".join("?" * 10)})
ON CONFLICT (person, day, kind, tool, bucket) DO UPDATE SET {", ".join(f"{n} = c.{n} + excluded.{n}" for n in _SUMS)}
"""  # noqa: S608 - constants
_PUT_HOUR = """
INSERT INTO legacy_hour AS h (person, slot, kind, n, failed) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (person, slot, kind) DO UPDATE SET n = h.n + excluded.n, failed = h.failed + excluded.failed
"""
_PUT_CALL = "INSERT INTO legacy_call (person, session, change) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_ANEW = """
INSERT INTO legacy_fold AS f (person, through, anew) VALUES (?, 0, 1)
ON CONFLICT (person) DO UPDATE SET through = 0, anew = f.anew + 1, stale = 0
"""
RECOUNT = "UPDATE legacy_fold SET stale = 1, anew = anew + 1 WHERE person = ?"
_EMPTIED = "UPDATE legacy_fold SET through = 0, stale = 0 WHERE person = ?"
_KEYS = {
    "legacy_session": "session, app",
    "legacy_cell": "day, kind, tool, bucket",
    "legacy_hour": "slot, kind",
    "legacy_call": "session, change",
}
_EMPTY = {
    table: f"DELETE FROM {table} WHERE person = ? AND ({keys}) IN "  # noqa: S608 - constants
    f"(SELECT {keys} FROM {table} WHERE person = ? LIMIT ?) RETURNING 1"
    for table, keys in _KEYS.items()
}


def is_behind(person: int) -> Plan[bool]:
    """Return whether a user has events that are not counted yet."""
    through, stale = yield from _mark(person)
    return stale or bool((yield Ask(_AHEAD, (person, through))))


def fold(person: int) -> Plan[bool]:
    """Count the next events of a user; return whether there are more."""
    through, stale = yield from _mark(person)
    if stale:
        yield from _empty(person)
        return True
    rows = yield Ask(_EVENTS, (person, through))
    if not rows:
        return False
    words = yield Words({row[2] for row in rows} | {row[6] for row in rows})
    out = yield from retracted([(row[-1], row[-2]) for row in rows if row[-2] is not None])
    step = _Step(person)
    for row in rows:
        if row[-1] not in out:
            step.count(row[:-2], words[row[2]], row[6] is not None and words[row[6]] != "ok")
    yield Many(_PUT_SESSION, [(person, *key, *values) for key, values in step.sessions.items()])
    yield Many(_PUT_CELL, [(person, *key, *sums) for key, sums in step.cells.items()])
    yield Many(_PUT_HOUR, [(person, *key, *sums) for key, sums in step.hours.items()])
    yield Many(_PUT_CALL, step.calls)
    yield Many(_MOVE, [(person, rows[-1][0])])
    return len(rows) == STEP


def forget(person: int) -> Plan[None]:
    """Count everything anew at the next look: events were taken back."""
    yield Many(_ANEW, [(person,)])
    for table in _KEYS:
        yield Many(f"DELETE FROM {table} WHERE person = ?", [(person,)])  # noqa: S608 - constants


def _empty(person: int) -> Plan[None]:
    """Remove some of a user's sums; the mark says so in the transaction that finds no more of any kind."""
    left = EMPTY_STEP
    for sql in _EMPTY.values():
        left -= len((yield Ask(sql, (person, person, left))))
        if left <= 0:
            return
    yield Many(_EMPTIED, [(person,)])


class _Step:
    """What the events of one step add up to."""

    def __init__(self, person: int) -> None:
        self.sessions: dict[tuple[int, int], list[Any]] = {}
        self.cells: dict[tuple[int, int, int, int], list[int]] = {}
        self.hours: dict[tuple[int, int], list[int]] = {}
        self.calls: list[tuple[int, int, int]] = []
        self._person = person

    def count(self, row: Sequence[Any], kind: str, failed: bool) -> None:
        change, at, kind_number, app, session, tool, _, duration, added, removed, *told = row
        ms, plus, minus = (min(max(value or 0, 0), COUNTED_MAX) for value in (duration, added, removed))
        slot, bad = at // HOUR_US, int(failed)
        bucket = bucket_of(None if duration is None else max(duration, 0))
        _add(self.cells, (slot // HOURS, kind_number, tool or 0, bucket), (1, bad, ms, plus, minus))
        _add(self.hours, (slot, kind_number), (1, bad))
        if session is None:
            return
        if kind == TOOL_USED:
            self.calls.append((self._person, session, change))
        is_end = kind == _ENDED
        last, end = (0, at) if is_end else (at, 0)
        known = self.sessions.get((session, app))
        if known is None:
            known = self.sessions[session, app] = [change, at, last, end, at, *told, *([0] * len(_NUMBERS))]
        known[1], known[2], known[3], known[4] = (
            min(known[1], at),
            max(known[2], last),
            max(known[3], end),
            max(known[4], at),
        )
        known[5:8] = [old if new is None else new for old, new in zip(known[5:8], told, strict=True)]
        numbers = [0] * len(_NUMBERS)
        if kind in _COUNTED:
            numbers[_COUNTED[kind]] = 1
        if kind == TOOL_USED:
            numbers[4:8] = [bad, ms, plus, minus]
        known[8:] = [old + new for old, new in zip(known[8:], numbers, strict=True)]


def _mark(person: int) -> Plan[tuple[int, bool]]:
    """Return up to which change a user's events are counted, and whether the sums are to be made anew."""
    rows = yield Ask(_MARK, (person,))
    return (int(rows[0][0]), bool(rows[0][1])) if rows else (0, False)


def _add(found: dict[Any, list[int]], key: Any, sums: Sequence[int]) -> None:
    known = found.get(key)
    if known is None:
        found[key] = list(sums)
    else:
        for place, value in enumerate(sums):
            known[place] += value
