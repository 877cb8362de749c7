"""What clients of the older API ask of the store: one session, a page of sessions, a session's calls, recent figures.

Reading only, but for the index that `prepare` makes; over one snapshot, and by index: nothing here looks at every event
or every session. A session is the one of its app; where two apps have the same id, there is one, and what a client
wrote comes first. A deleted session is not told of, its calls are.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from metricsd.model import Event, Kind
from metricsd.store import legacy_extra, session_totals
from metricsd.store.connection import Store
from metricsd.store.events import SELECT, from_row
from metricsd.store.legacy_extra import SESSION, TOOL
from metricsd.store.summary import Metric, Summary
from metricsd.totals import SessionTotal

LEGACY = "legacy"
"""App of sessions that came through the older API (decode.older_hooks.APP)."""
CALLS_MAX = 20_000
"""Calls of one session in one answer."""
NEWEST_ROWS = 200
"""Counters' rows that are looked at for the newest sessions: each session has one for every device that saw it."""
_TOOL_USED = Kind.TOOL_USED.value

_OF_ID = "SELECT app FROM session WHERE session_id = ? ORDER BY id"
_RECORD = "SELECT fields, deleted FROM record WHERE type = 'session' AND id = ?"
_ALL = "SELECT id, app, session_id FROM session ORDER BY id"
_BY_USER = """
SELECT s.id, s.app, s.session_id FROM legacy_extra AS x JOIN session AS s ON s.session_id = x.key
WHERE x.kind = 'session' AND x.who = ? ORDER BY s.id
"""
_BY_TIME = """
SELECT s.id, s.app, s.session_id FROM session AS s WHERE s.id IN (
    SELECT session FROM session_counters WHERE started_at BETWEEN ?1 AND ?2
    UNION SELECT t.id FROM legacy_extra AS x JOIN session AS t ON t.session_id = x.key
        WHERE x.kind = 'session' AND x.began BETWEEN ?1 AND ?2
) ORDER BY s.id
"""
_CALLS = f"""{SELECT}
WHERE event.session IN (SELECT id FROM session WHERE session_id = ?) AND event.session IS NOT NULL AND t.kind = ?
AND coalesce(event.batch, 0) NOT IN (SELECT batch FROM retracted_batch)
ORDER BY event.at, event.pos LIMIT ?
"""
_METRICS = """
SELECT json_extract(fields, '$.app'), json_extract(fields, '$.session'), json_extract(fields, '$.tool'),
    coalesce(json_extract(fields, '$.started_at'), json_extract(fields, '$.ended_at')),
    json_extract(fields, '$.execution_count'), json_extract(fields, '$.error_count'),
    json_extract(fields, '$.total_duration_ms')
FROM record WHERE type = 'tool_metric' AND deleted = 0 AND json_extract(fields, '$.session') = ?
AND coalesce(json_extract(fields, '$.batch'), '') NOT IN (
    SELECT b.text FROM retracted_batch AS r JOIN term AS b ON b.id = r.batch)
"""
_INDEX = "CREATE INDEX IF NOT EXISTS event_session ON event (session) WHERE session IS NOT NULL"
_NEWEST = "SELECT min(started_at) FROM (SELECT started_at FROM session_counters ORDER BY started_at DESC LIMIT ?)"
_FOREVER_US = 2**62

Values = Mapping[str, Any]


class Found(NamedTuple):
    """A session: what a client said of it, its record's fields, and what its events add up to."""

    app: str
    id: str
    document: Values
    fields: Values
    total: SessionTotal | None

    @property
    def started_at(self) -> int:
        """Return when it began, as it is told: by its client, else by its events, else as noted."""
        said = self.document.get("start_us")
        if isinstance(said, int):
            return said
        if self.total is not None:
            return self.total.started_at
        noted = self.fields.get("started_at")
        return noted if isinstance(noted, int) else 0


class Page(NamedTuple):
    """Which sessions to list. `owner` is whose a session is of which nobody said it."""

    user: str | None
    owner: str
    from_us: int | None
    until_us: int | None
    skip: int
    limit: int


def prepare(store: Store) -> None:
    """Make the index by which the calls of a session are found; homes that are not asked do without its bytes."""
    with store.transaction():
        store.db.execute(_INDEX)


def find(summary: Summary, session_id: str) -> Found | None:
    """Return a session by its id; None when there is none, and for a deleted one."""
    db = summary.db
    if db is None or not session_id:
        return None
    apps = [str(row[0]) for row in db.execute(_OF_ID, (session_id,))] or [LEGACY]
    if _document(db, SESSION, session_id):
        # A client of the older API wrote it; without that its own is only what strayed into another tool's session.
        apps.sort(key=lambda app: app != LEGACY)
    else:
        apps.sort(key=lambda app: app == LEGACY)
    return next((one for app in apps if (one := _found(summary, db, app, session_id)) is not None), None)


def page(summary: Summary, wanted: Page) -> list[Found]:
    """Return sessions in the order in which this store came to know them."""
    if summary.db is None:
        return []
    found: list[Found] = []
    left = wanted.skip
    seen: set[str] = set()
    for app, session_id in _candidates(summary.db, wanted):
        if len(found) == wanted.limit:
            break
        if session_id in seen:
            continue
        one = _found(summary, summary.db, app, session_id)
        if one is None or not _is_wanted(one, wanted):
            continue
        seen.add(session_id)
        if left:
            left -= 1
            continue
        found.append(one)
    return found


def calls(summary: Summary, session_id: str) -> list[tuple[Event, Values]]:
    """Return a session's calls in the order of time, with what their clients said of them."""
    db = summary.db
    if db is None or not session_id:
        return []
    found = []
    for row in db.execute(_CALLS, (session_id, _TOOL_USED, CALLS_MAX)):
        _, event_id, event = from_row(summary.name, row)
        found.append((event, _document(db, TOOL, event_id.hex())))
    return found


def metrics(summary: Summary, session_id: str) -> list[Metric]:
    """Return the calls of a session that arrived added up."""
    if summary.db is None or not session_id:
        return []
    return [
        Metric(str(app), session_id, tool, at, n if isinstance(n, int) else 1, bad if isinstance(bad, int) else 0, ms)
        for app, _, tool, at, n, bad, ms in summary.db.execute(_METRICS, (session_id,))
    ]


def newest_since_us(summary: Summary) -> int:
    """Return the start of the newest sessions, as many as a baseline needs several times over."""
    if summary.db is None:
        return 0
    return int(summary.db.execute(_NEWEST, (NEWEST_ROWS,)).fetchone()[0] or 0)


def _candidates(db: sqlite3.Connection, wanted: Page) -> Iterator[tuple[str, str]]:
    if wanted.user is not None and wanted.user != wanted.owner:
        rows = db.execute(_BY_USER, (wanted.user,))
    elif wanted.from_us is not None or wanted.until_us is not None:
        bounds = (wanted.from_us or 0, _FOREVER_US if wanted.until_us is None else wanted.until_us)
        rows = db.execute(_BY_TIME, bounds)
    else:
        rows = db.execute(_ALL)
    for _, app, session_id in rows:
        yield str(app), str(session_id)


def _found(summary: Summary, db: sqlite3.Connection, app: str, session_id: str) -> Found | None:
    row = db.execute(_RECORD, (f"{app}/{session_id}",)).fetchone()
    if row is not None and row[1]:
        return None
    total = session_totals.one(summary, app, session_id)
    if row is None and total is None:
        return None
    document = _document(db, SESSION, session_id)
    return Found(app, session_id, document, {} if row is None else json.loads(row[0]), total)


def _is_wanted(one: Found, wanted: Page) -> bool:
    if wanted.user is not None and one.document.get("user", wanted.owner) != wanted.user:
        return False
    if wanted.from_us is not None and one.started_at < wanted.from_us:
        return False
    return wanted.until_us is None or one.started_at <= wanted.until_us


def _document(db: sqlite3.Connection, kind: str, key: str) -> Values:
    row = db.execute(legacy_extra.GET, (kind, key)).fetchone()
    if row is None:
        return {}
    found: Values = json.loads(row[0])
    return found
