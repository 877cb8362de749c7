"""The target side of a comparison: what the store really holds, read back over a connection that can only read.

Everything of the run's own batches is read, and, where entries were known before, everything else of the same tools, so
that a fact which somebody else brought is found as well. One snapshot; memory is bounded by the names that are
remembered.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metricsd.migration.digest import Cell, RowHash
from metricsd.migration.figures import Figures
from metricsd.migration.rows import EVENT, TOOL_USED, TRANSCRIPT, day_of, flat
from metricsd.migration.side import Side
from metricsd.store.events import OTHER_OUTCOME, OUTCOMES, unpack_call
from metricsd.store.summary import snapshot

NAMES_MAX = 50_000
OURS = 1
"""The lowest bit of a row's place: this run brought it. The rest is its position in the store."""
_POSITION_SHIFT = 1 << 40
"""Positions of other devices' events are negative; a place is not."""
_COLUMNS = (
    "pos, id, at, type, session, tool, outcome, duration_ms, call, project, branch, subject, input_bytes, "
    "output_bytes, lines_added, lines_removed, tags, batch, more"
)
_OWN = f"SELECT {_COLUMNS} FROM event WHERE batch IN (SELECT id FROM term WHERE text >= ? AND text < ?)"  # noqa: S608
_ALL = f"SELECT {_COLUMNS} FROM event"  # noqa: S608
_BATCHES = "SELECT id FROM term WHERE text >= ? AND text < ?"
_TYPES = "SELECT id, app, kind, name FROM event_type"
_RECORD = "SELECT fields, stamps, deleted FROM record WHERE type = ? AND id = ?"
_EXTRA = "SELECT body FROM legacy_extra WHERE kind = ? AND key = ?"
_EXTRA_BYTES = "SELECT coalesce(sum(bytes), 0) FROM legacy_extra"
_SESSION = """
SELECT sum(c.tool_calls), min(c.started_at), max(c.end_at), max(c.project) FROM session AS s JOIN session_counters AS c ON c.session = s.id
WHERE s.session_id = ? AND s.app = ?
"""
_HOOKED = """
SELECT DISTINCT s.session_id FROM session AS s JOIN event AS e ON e.session = s.id JOIN event_type AS t ON t.id = e.type
WHERE s.app = 'claude-code' AND t.kind = 'tool_used' AND t.name != 'Transcript' AND e.batch IS NULL
"""


class Stored(NamedTuple):
    """A record as the store has it: its fields, when each was set (milliseconds UTC), and whether it was deleted."""

    fields: dict[str, Any]
    set_ms: dict[str, int]
    deleted: bool
    ours: bool
    """Whether this run brought it, where it says so."""


class Counted(NamedTuple):
    """What the events of a session add up to. Times are microseconds UTC."""

    calls: int
    start: int | None
    end: int | None
    project: str | None


class StoreTarget:
    """One snapshot of the store. Use within `opened`."""

    name = "store"
    keeps_local = True

    def __init__(self, db: sqlite3.Connection, run: str) -> None:
        self._db = db
        self._range = (f"{run}.", f"{run}/")
        self._texts: dict[int, str | None] = {}
        self._sessions: dict[int, str] = {}
        self._hooked: frozenset[str] | None = None
        self.by = Figures()

    def read_events(self, side: Side, key: bytes, *, everything: bool) -> int:
        """Write the events into `side`; with `everything`, also those that this run did not bring. Return how many."""
        row_hash = RowHash(key)
        batches = {row[0] for row in self._db.execute(_BATCHES, self._range)}
        types = {row[0]: row[1:] for row in self._db.execute(_TYPES)}
        rows = self._db.execute(_ALL) if everything else self._db.execute(_OWN, self._range)
        text, session_of = self._text, self._session
        numbers: dict[tuple[int, int | None], int] = {}
        own = 0
        for (pos, event_id, at, kind_id, session, tool, outcome, duration, call, project, branch, subject, in_bytes,
             out_bytes, added, removed, tags, batch, more) in rows:  # fmt: skip
            app, kind, name = types[kind_id]
            tool_name = None if tool is None else text(tool)
            model = agent = reason = None
            extra = None
            if tags is not None or more is not None:
                values = json.loads(text(tags) or "{}") if tags is not None else {}
                model, agent, reason = (values.pop(word, None) for word in ("/model", "/agent", "/reason"))
                extra = flat({**values, **(json.loads(more) if more is not None else {})})
            if name == TRANSCRIPT:
                project = in_bytes = out_bytes = None
            said = (
                None
                if outcome is None
                else OUTCOMES[outcome]
                if outcome < len(OUTCOMES)
                else text(outcome - OTHER_OUTCOME)
            )
            row = (
                kind, app, name, at, None if session is None else session_of(session), tool_name, said, duration,
                unpack_call(call), None if project is None else text(project), None if branch is None else text(branch),
                model, agent, None if subject is None else text(subject), reason, in_bytes, out_bytes, added, removed,
                extra,
            )  # fmt: skip
            day = day_of(at)
            number = numbers.get((day, tool))
            if number is None:
                number = side.number(Cell(EVENT, day, tool_name or ""))
                if len(numbers) < NAMES_MAX:
                    numbers[(day, tool)] = number
            ours = OURS if batch in batches else 0
            identity = int.from_bytes(event_id[8:], "big")
            side.add(identity, row_hash(row), number, (pos + _POSITION_SHIFT) << 1 | ours)
            if ours:
                own += 1
                if kind == TOOL_USED:
                    self.by.call(tool_name or "", said != "ok", duration)
        return own

    def record(self, kind: str, record_id: str) -> Stored | None:
        """Return a record; None where there is none."""
        found = self._db.execute(_RECORD, (kind, record_id)).fetchone()
        if found is None:
            return None
        # A stamp begins with 12 hexadecimal digits of milliseconds.
        stamps: dict[str, str] = json.loads(found[1])
        fields: dict[str, Any] = json.loads(found[0])
        set_ms = {name: int(text[:12], 16) for name, text in stamps.items()}
        return Stored(fields, set_ms, bool(found[2]), str(fields.get("batch") or "").startswith(self._range[0]))

    def kept_of(self, session: str) -> dict[str, Any] | None:
        """Return what is kept on this machine of a session; None for nothing."""
        found = self._db.execute(_EXTRA, ("session", session)).fetchone()
        return None if found is None else json.loads(found[0])

    def kept_bytes(self) -> int:
        """Return how much is kept of all sessions: at a cap the oldest is dropped."""
        return int(self._db.execute(_EXTRA_BYTES).fetchone()[0])

    def is_hooked(self, session: str) -> bool:
        """Return whether hooks captured a session of Claude Code: then its transcript is not counted as well."""
        if self._hooked is None:
            self._hooked = frozenset(row[0] for row in self._db.execute(_HOOKED))
        return session in self._hooked

    def session(self, app: str, session: str) -> Counted:
        """Return what the store's events of a session add up to."""
        calls, start, end, project = self._db.execute(_SESSION, (session, app)).fetchone()
        return Counted(int(calls or 0), start, end, project)

    def _text(self, term: int) -> str | None:
        known = self._texts.get(term)
        if known is None:
            if len(self._texts) >= NAMES_MAX:
                self._texts.clear()
            row = self._db.execute("SELECT text FROM term WHERE id = ?", (term,)).fetchone()
            known = self._texts[term] = None if row is None else row[0]
        return known

    def _session(self, number: int) -> str:
        known = self._sessions.get(number)
        if known is None:
            if len(self._sessions) >= NAMES_MAX:
                self._sessions.clear()
            row = self._db.execute("SELECT session_id FROM session WHERE id = ?", (number,)).fetchone()
            known = self._sessions[number] = row[0]
        return known


@contextlib.contextmanager
def open_store(path: Path, run: str) -> Iterator[StoreTarget]:
    """Give the store at `path` as a target, one snapshot of it."""
    with snapshot(path) as db:
        yield StoreTarget(db, run)
