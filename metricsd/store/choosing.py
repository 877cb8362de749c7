"""Which of a part's events a choice names, and which records go with them. Reading only.

A record of a session goes with the event of its start or end that the same part brought; a tool metric is chosen by its
own fields, because it has no event.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from metricsd import import_batch
from metricsd.ids import EVENT_ID_BYTES, EventId, user_uuid
from metricsd.store import legacy_extra, tool_metrics
from metricsd.store.befores import EXTRA_PREFIX, Before
from metricsd.store.connection import Store

_IDS_PER_QUERY = 500
_USER = """
SELECT id FROM record WHERE type = 'session' AND json_extract(fields, '$.user_id') IN (SELECT value FROM json_each(?))
"""
_WHO = "SELECT key FROM legacy_extra WHERE kind = 'session' AND who IN (SELECT value FROM json_each(?))"
_EVENTS = """
SELECT e.id, e.at, s.app, s.session_id, t.kind, m.text, b.text FROM event AS e JOIN event_type AS t ON t.id = e.type
LEFT JOIN session AS s ON s.id = e.session LEFT JOIN term AS m ON m.id = e.tool JOIN term AS b ON b.id = e.batch
WHERE e.id IN ({})
"""
_METRIC = """
SELECT json_extract(fields, '$.app'), json_extract(fields, '$.session'), json_extract(fields, '$.tool'),
    coalesce(json_extract(fields, '$.started_at'), json_extract(fields, '$.ended_at'))
FROM record WHERE type = 'tool_metric' AND id = ?
"""
_MARK = "SELECT ids FROM import_mark WHERE run = ? AND part = ? AND rule = ?"
_ENDS = ("session_started", "session_ended")
NEVER_US = 2**62


class Choice(Struct, frozen=True):
    """What to take back: everything that all of these name; of one kind any of several. An empty one names all.

    `sessions` are ids with or without the app, `users` names or ids; times are microseconds UTC, `until_us` excluded.
    """

    sessions: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    since_us: int = 0
    until_us: int = NEVER_US


class Chosen(NamedTuple):
    """What a choice names of one part."""

    ids: dict[EventId, str]
    """The batch of each event."""
    session_ids: frozenset[str]
    """Sessions whose records go too, as `<app>/<id>` and as the id alone."""
    metrics: frozenset[str]

    def covers(self, one: Before) -> bool:
        """Return whether what was noted of this address goes too."""
        if one.type == tool_metrics.TYPE:
            return one.id in self.metrics
        if one.type == EXTRA_PREFIX + legacy_extra.TOOL:
            return _event_id(one.id) in self.ids
        return one.id in self.session_ids

    def by_batch(self) -> dict[str, list[EventId]]:
        """Return the events of each batch."""
        found: dict[str, list[EventId]] = {}
        for event_id, batch in self.ids.items():
            found.setdefault(batch, []).append(event_id)
        return found


def choose(
    store: Store,
    choice: Choice,
    people: frozenset[str] | None,
    part: tuple[str, int],
    ids: Sequence[EventId],
    changes: Sequence[Before],
) -> Chosen:
    """Return what the choice names of a part (run and number) that brought these events and made these changes.

    `people` are `sessions_of` the choice's users as it was before anything was taken back.
    """
    found_by = {one for rule in choice.rules for one in marked(store, part, rule)}
    found: dict[EventId, str] = {}
    ended: set[str] = set()
    for start in range(0, len(ids), _IDS_PER_QUERY):
        some = ids[start : start + _IDS_PER_QUERY]
        for event_id, at, app, session, kind, tool, batch in store.db.execute(
            _EVENTS.format(", ".join("?" * len(some))), list(some)
        ):
            if choice.rules and event_id not in found_by:
                continue
            if not _fits(choice, people, app, session, tool, at):
                continue
            found[EventId(event_id)] = import_batch.base_of(batch)
            if kind in _ENDS and session is not None:
                ended |= {session, f"{app}/{session}"}
    metrics = set()
    if not choice.rules:
        for one in changes:
            if one.type == tool_metrics.TYPE:
                row = store.db.execute(_METRIC, (one.id,)).fetchone()
                if row is not None and _fits(choice, people, row[0], row[1], row[2], row[3]):
                    metrics.add(one.id)
    return Chosen(found, frozenset(ended), frozenset(metrics))


def _fits(
    choice: Choice, people: frozenset[str] | None, app: object, session: object, tool: object, at: object
) -> bool:
    """Return whether a fact is chosen. What does not say when it was is in no stretch of time."""
    address = f"{app}/{session}"
    if choice.sessions and session not in choice.sessions and address not in choice.sessions:
        return False
    if people is not None and address not in people and session not in people:
        return False
    if choice.tools and tool not in choice.tools:
        return False
    if (choice.since_us, choice.until_us) == (0, NEVER_US):
        return True
    return isinstance(at, int) and choice.since_us <= at < choice.until_us


def sessions_of(store: Store, users: Sequence[str]) -> frozenset[str] | None:
    """Return the sessions of these people, by the id in their record or the name that an older tool noted."""
    if not users:
        return None
    ids = json.dumps([*users, *map(user_uuid, users)])
    found = {str(row[0]) for row in store.db.execute(_USER, (ids,))}
    return frozenset(found | {str(row[0]) for row in store.db.execute(_WHO, (json.dumps(list(users)),))})


def marked(store: Store, part: tuple[str, int], rule: str) -> list[EventId]:
    """Return the events of a part (run and number) that a rule found something about, or that it brought back."""
    row = store.db.execute(_MARK, (*part, rule)).fetchone()
    return unpacked(row[0]) if row is not None else []


def unpacked(packed: bytes) -> list[EventId]:
    """Return event ids that were put one behind the other."""
    return [EventId(packed[start : start + EVENT_ID_BYTES]) for start in range(0, len(packed), EVENT_ID_BYTES)]


def _event_id(text: str) -> EventId:
    try:
        return EventId(bytes.fromhex(text))
    except ValueError:
        return EventId(b"")
