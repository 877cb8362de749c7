"""What a session's events add up to: one row per (session, device).

Own rows are written by ingest alone, in the transaction of the events; rows of other devices come from the cloud
and are read beside them, so nobody can conflict and a reader sums. Times combine by minimum and maximum, numbers by
addition: the order in which events arrive does not matter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from metricsd.errors import LineRejected
from metricsd.model import NAME_CHARS_MAX, Event, Kind
from metricsd.store import place
from metricsd.store.connection import Store
from metricsd.store.devices import own_device
from metricsd.totals import COUNTED_MAX

NUMBERS = (
    "events", "starts", "prompts", "turns", "failed_turns", "tool_calls", "tool_failures", "tool_ms",
    "lines_added", "lines_removed", "subagents", "compactions", "denials",
)  # fmt: skip
TEXTS = ("end_reason", "project", "branch", "model")
TIMES = ("started_at", "last_at", "end_at", "idle_at")
FIELDS = TIMES + TEXTS + NUMBERS
INFERRED = "inferred"
"""end_reason of a session whose end was never seen."""
_NUMBER_MAX = 2**63 - 1
# Looking a member of an enum up costs as much as counting.
_ENDED, _TOOL_USED = Kind.SESSION_ENDED.value, Kind.TOOL_USED.value

_PLUS = ", ".join(f"{name} = {name} + excluded.{name}" for name in NUMBERS)
_ADD = f"""
INSERT INTO session_counters (session, device, {", ".join(FIELDS)}) VALUES ({", ".join("?" * (2 + len(FIELDS)))})
ON CONFLICT DO UPDATE SET
    started_at = min(started_at, excluded.started_at),
    last_at = max(last_at, excluded.last_at),
    end_reason = CASE WHEN excluded.end_at IS NOT NULL AND excluded.end_at >= coalesce(end_at, 0)
                      THEN excluded.end_reason ELSE end_reason END,
    end_at = CASE WHEN excluded.end_at IS NOT NULL THEN max(coalesce(end_at, 0), excluded.end_at) ELSE end_at END,
    project = coalesce(excluded.project, project), branch = coalesce(excluded.branch, branch),
    model = coalesce(excluded.model, model), {_PLUS}, dirty = dirty + 1
"""
_MINUS = ", ".join(f"{name} = max({name} - ?, 0)" for name in NUMBERS)
_PUT_REMOTE = f"""
INSERT INTO session_counters (session, device, {", ".join(FIELDS)}, rev, dirty) VALUES ({", ".join("?" * (2 + len(FIELDS)))}, ?, 0)
ON CONFLICT DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in FIELDS)}, rev = excluded.rev, dirty = 0
"""
_PENDING = f"""
SELECT c.session, c.device, s.app, s.session_id, d.device_id, c.rev, c.dirty, {", ".join("c." + name for name in FIELDS)}
FROM session_counters AS c JOIN session AS s ON s.id = c.session JOIN device AS d ON d.id = c.device
WHERE c.dirty > 0 AND c.device = ? LIMIT ?
"""
_CLOSE_IDLE = """
UPDATE session_counters SET idle_at = last_at, dirty = dirty + 1
WHERE device = ? AND last_at < ? AND (end_at IS NULL OR end_at < last_at) AND (idle_at IS NULL OR idle_at < last_at)
"""


class Tally:
    """What some events of one session add up to, before they reach the database."""

    __slots__ = ("branch", "end_at", "end_reason", "last_at", "model", "numbers", "project", "started_at")

    def __init__(self) -> None:
        self.started_at: int | None = None
        self.last_at = 0
        self.end_at: int | None = None
        self.end_reason: str | None = None
        self.project: str | None = None
        self.branch: str | None = None
        self.model: str | None = None
        self.numbers = [0] * len(NUMBERS)

    def count(self, e: Event) -> None:
        """Count one event."""
        at, numbers, kind = e.at, self.numbers, e.kind
        numbers[0] += 1
        if self.started_at is None or at < self.started_at:
            self.started_at = at
        if kind == _ENDED:
            if self.end_at is None or at >= self.end_at:
                self.end_at, self.end_reason = at, e.reason
        elif at > self.last_at:
            self.last_at = at
        if e.project is not None:
            self.project = e.project
        if e.branch is not None:
            self.branch = e.branch
        if kind == _TOOL_USED:
            numbers[5] += 1
            if e.outcome != "ok":
                numbers[6] += 1
            ms, added, removed = e.duration_ms, e.lines_added, e.lines_removed
            if ms:
                numbers[7] += ms if ms < COUNTED_MAX else COUNTED_MAX
            if added:
                numbers[8] += added if added < COUNTED_MAX else COUNTED_MAX
            if removed:
                numbers[9] += removed if removed < COUNTED_MAX else COUNTED_MAX
        else:
            if e.model is not None:
                self.model = e.model
            index = _INDEX_OF_KIND.get(kind)
            if index is not None:
                numbers[index] += 1

    def row(self) -> tuple[Any, ...]:
        """Return the values of FIELDS. `last_at` is 0 for a session that is known by its end alone."""
        started = self.started_at or 0
        return (
            started, self.last_at, self.end_at, None, self.end_reason, self.project, self.branch, self.model, *self.numbers,
        )  # fmt: skip


_INDEX_OF_KIND: dict[str, int] = {
    Kind.SESSION_STARTED: 1,
    Kind.PROMPT_SUBMITTED: 2,
    Kind.TURN_ENDED: 3,
    Kind.TURN_FAILED: 4,
    Kind.SUBAGENT_ENDED: 10,
    Kind.CONTEXT_COMPACTED: 11,
    Kind.TOOL_DENIED: 12,
}


class CounterRow(NamedTuple):
    """An own row that the cloud does not have yet."""

    session: int
    device: int
    app: str
    session_id: str
    device_id: str
    rev: str | None
    dirty: int
    values: tuple[Any, ...]

    def fields(self) -> dict[str, Any]:
        """Return the wire fields; None and zero are left out."""
        return {name: value for name, value in zip(FIELDS, self.values, strict=True) if value}


def add_tallies(store: Store, device: int, tallies: dict[int, Tally]) -> None:
    """Add what new events of own sessions add up to, inside the caller's transaction."""
    store.db.executemany(_ADD, [(session, device, *tally.row()) for session, tally in tallies.items()])


def subtract_tallies(store: Store, device: int, tallies: dict[int, Tally]) -> None:
    """Take away what moved events added up to; a row without events left is dropped."""
    sql = f"UPDATE session_counters SET {_MINUS}, dirty = dirty + 1 WHERE session = ? AND device = ?"
    store.db.executemany(sql, [(*tally.numbers, session, device) for session, tally in tallies.items()])
    # A row that the cloud knows stays, with zeros, so that the cloud learns of it.
    store.db.execute("DELETE FROM session_counters WHERE device = ? AND events = 0 AND rev IS NULL", (device,))


def pending(store: Store, limit: int) -> list[CounterRow]:
    """Return own rows that the cloud does not have yet."""
    rows = store.db.execute(_PENDING, (own_device(store), limit))
    return [CounterRow._make((*row[:7], row[7:])) for row in rows]


def pending_count(store: Store) -> int:
    """Return how many own rows the cloud does not have yet."""
    sql = "SELECT count(*) FROM session_counters WHERE dirty > 0 AND device = (SELECT value FROM state WHERE key = 'own_device')"
    return int(store.db.execute(sql).fetchone()[0])


def mark_pushed(store: Store, row: CounterRow, rev: str) -> None:
    """Note that the cloud has this version; a row that changed meanwhile stays pending."""
    store.db.execute(
        "UPDATE session_counters SET rev = ?, dirty = CASE WHEN dirty = ? THEN 0 ELSE dirty END WHERE session = ? AND device = ?",
        (rev, row.dirty, row.session, row.device),
    )
    place.note(store, rev)


def put_remote(store: Store, device_id: str, app: str, session_id: str, fields: dict[str, Any], rev: str) -> None:
    """Store another device's row as the cloud gave it; raise LineRejected for values that cannot be."""
    values = [_checked(name, fields.get(name)) for name in FIELDS]
    session, device = store.terms.session(app, session_id), store.terms.device(device_id)
    store.db.execute(_PUT_REMOTE, (session, device, *values, rev))


def close_idle(store: Store, idle_us: int) -> int:
    """Mark own sessions that have been silent for `idle_us` as ended then; return how many."""
    with store.transaction():
        return store.db.execute(_CLOSE_IDLE, (own_device(store), store.clock.now_us() - idle_us)).rowcount


def _checked(name: str, value: Any) -> int | str | None:
    if name in TEXTS:
        if value is None or (isinstance(value, str) and len(value) <= NAME_CHARS_MAX):
            return value
    elif value is None and name in ("end_at", "idle_at"):
        return None
    elif value is None:
        return 0
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _NUMBER_MAX:
        return value
    raise LineRejected("bad_fields", f"session counter {name} has a value of the wrong kind")
