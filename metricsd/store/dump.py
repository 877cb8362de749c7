"""Everything that the store holds, as documents, one after the other: events, sessions' counters and records.

Reading only, over one snapshot, in bounded memory. Nothing is left out or rounded: what is retracted or deleted is
there and says so, and so are events of other devices. Names are the local ones.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from metricsd.store.counters import FIELDS, TIMES
from metricsd.store.events import OTHER_OUTCOME, OUTCOMES, unpack_call
from metricsd.store.summary import snapshot

Document = dict[str, Any]

NAMES_MAX = 50_000
EVENT, COUNTERS = "event", "session_counters"
EVENT_FIELDS = (
    "id", "at", "device", "own", "app", "kind", "name", "session", "call", "tool", "outcome", "duration_ms", "project",
    "branch", "model", "agent", "subject", "reason", "input_bytes", "output_bytes", "lines_added", "lines_removed",
    "batch", "extra",
)  # fmt: skip
"""Fields of an event's document besides `type`; those without a value are left out."""
RECORD_FIELDS = ("id", "deleted", "fields")
"""Fields of a record's document besides `type`."""
_EVENTS = """
SELECT e.pos, e.id, e.at, d.device_id, d.own, t.app, t.kind, t.name, s.session_id, e.call, e.tool, e.outcome,
    e.duration_ms, e.project, e.branch, e.subject, e.input_bytes, e.output_bytes, e.lines_added, e.lines_removed,
    e.batch, e.tags, e.more
FROM event AS e JOIN event_type AS t ON t.id = e.type JOIN device AS d ON d.id = e.device
LEFT JOIN session AS s ON s.id = e.session WHERE e.at >= ? ORDER BY e.pos
"""
_COUNTERS = f"""
SELECT s.app, s.session_id, d.device_id, d.own, {", ".join("c." + name for name in FIELDS)}
FROM session_counters AS c JOIN session AS s ON s.id = c.session JOIN device AS d ON d.id = c.device
WHERE max(c.last_at, coalesce(c.end_at, 0)) >= ? ORDER BY c.session, c.device
"""
_RECORDS = "SELECT type, id, deleted, fields FROM record ORDER BY type, id"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Give one snapshot of the store at `path`; None where there is none. Raises StoreError."""
    if not path.exists():
        yield None
        return
    with snapshot(path) as db:
        yield db


def documents(db: sqlite3.Connection, since_us: int | None = None) -> Iterator[Document]:
    """Yield every event, sessions' counters and record; with `since_us` only what happened since then.

    Records without a time of their own are always there.
    """
    since = -(2**62) if since_us is None else since_us
    names = _Names(db)
    for row in db.execute(_EVENTS, (since,)):
        yield _event(row, names)
    for row in db.execute(_COUNTERS, (since,)):
        yield _counters(row)
    for kind, record_id, deleted, fields in db.execute(_RECORDS):
        found = json.loads(fields)
        times = [found[name] for name in ("ended_at", "started_at", "imported_at") if isinstance(found.get(name), int)]
        if not times or max(times) >= since:
            yield {"type": kind, "id": record_id, "deleted": bool(deleted), "fields": found}


def time_text(at_us: int) -> str | int:
    """Return microseconds UTC as RFC 3339 to the microsecond; the number itself for no time that can be shown."""
    try:
        return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except OverflowError:
        return at_us


class _Names:
    """Interned strings, a bounded number of them in memory."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[int, str | None] = {}

    def __call__(self, term: int | None) -> str | None:
        if not term:
            return None
        if term not in self._known:
            if len(self._known) >= NAMES_MAX:
                self._known.clear()
            row = self._db.execute("SELECT text FROM term WHERE id = ?", (term,)).fetchone()
            self._known[term] = None if row is None else str(row[0])
        return self._known[term]


def _event(row: tuple[Any, ...], name: _Names) -> Document:
    (_, event_id, at, device, own, app, kind, own_name, session, call, tool, outcome, duration_ms, project, branch,
     subject, input_bytes, output_bytes, lines_added, lines_removed, batch, tags, more) = row  # fmt: skip
    texts: dict[str, Any] = json.loads(name(tags) or "{}") if tags else {}
    special = {key: texts.pop(f"/{key}", None) for key in ("model", "agent", "reason")}
    extra = texts | (json.loads(more) if more else {})
    found = {
        "type": EVENT, "id": event_id.hex(), "at": time_text(at), "device": device or None, "own": bool(own), "app": app,
        "kind": kind, "name": own_name, "session": session, "call": unpack_call(call), "tool": name(tool),
        "outcome": _outcome(outcome, name), "duration_ms": duration_ms, "project": name(project),
        "branch": name(branch), **special, "subject": name(subject), "input_bytes": input_bytes,
        "output_bytes": output_bytes, "lines_added": lines_added, "lines_removed": lines_removed, "batch": name(batch),
        "extra": extra or None,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def _outcome(code: int | None, name: _Names) -> str | None:
    if code is None:
        return None
    return OUTCOMES[code] if code < len(OUTCOMES) else name(code - OTHER_OUTCOME)


def _counters(row: tuple[Any, ...]) -> Document:
    app, session, device, own, *values = row
    fields = {name: value for name, value in zip(FIELDS, values, strict=True) if value}
    fields |= {name: time_text(fields[name]) for name in TIMES if name in fields}
    return {
        "type": COUNTERS,
        "app": app,
        "session": session,
        "device": device or None,
        "own": bool(own),
        "fields": fields,
    }
