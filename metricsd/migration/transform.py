"""Makes of each row what the store keeps of it: events with their ids, and values beside them.

Everything is kept that the older system lost on this way: times, durations, branch, quality and workflow metrics. Ids and
values are those of the daemon, which reads the same files while they grow, so neither brings anything twice. What is
done to a value (cut, clamped, mapped, guessed, merged) is said in a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from metricsd.decode.names import repeated_id
from metricsd.decode.older_hooks import (
    APP,
    FORM,
    NO_SESSION,
    AddedUp,
    SessionNote,
    ToolCall,
    has_no_offset,
    session_events,
)
from metricsd.migration.model import Note, NoteKind, Planned, Row
from metricsd.migration.people import People
from metricsd.migration.work import Work
from metricsd.model import Event
from metricsd.older.lines import beside_of
from metricsd.store import sessions, tool_metrics
from metricsd.store.events import Identified
from metricsd.store.ingest import Beside
from metricsd.store.suggestions import Suggestion

USER_FIELD = "user_id"
_CUT_NUMBERS = (("execution_time_ms", "duration_ms"), ("execution_time", "duration_ms"))


class Transform:
    """The transform of one run."""

    def __init__(self, work: Work, people: People) -> None:
        self._work = work
        self._people = people

    def plan(self, row: Row, batch: str) -> Planned:
        """Return what the store keeps of a row; `batch` is the import that brings it."""
        found = row.found
        match found:
            case ToolCall():
                return self._call(row, found, batch)
            case SessionNote():
                return self._session(row, found, batch)
            case AddedUp():
                return self._added_up(row, found, batch)
            case Identified():
                return Planned(row, (Identified(found.id, replace(found.event, batch=batch)),))
            case None:
                return Planned(row, ())
            case _:
                return Planned(row, (), (found,))

    def _call(self, row: Row, call: ToolCall, batch: str) -> Planned:
        event = call.event
        notes = list(_changes_of_call(row, call)) if _is_unusual(row.raw, event) else []
        session = event.session
        if session is None or session in NO_SESSION:
            owner = self._work.owner(call.user, event.at)
            if owner is not None:
                # As events have it: an id that does not look like one is kept as its hash.
                session = repeated_id(owner)
                notes.append(Note(NoteKind.GUESS, "session_by_time", "session", row.place))
        if row.others:
            notes.append(Note(NoteKind.MERGE, "announced_call", "", row.place, row.others))
        kept = replace(event, session=session, batch=batch)
        item = Identified(call.id(row.occurrence), kept)
        return Planned(row, (item,), (), tuple(notes), self._people.id_of(call.user))

    def _session(self, row: Row, note: SessionNote, batch: str) -> Planned:
        items = tuple(Identified(event_id, replace(event, batch=batch)) for event_id, event in session_events(note))
        # A strange id is stored as its hash, here and by the daemon.
        session = repeated_id(note.session) or note.session
        beside: list[Beside] = list(beside_of(note._replace(session=session)))
        user = self._people.id_of(note.user)
        notes = [_change(row, change) for change in note.changes]
        if session != note.session:
            notes.append(Note(NoteKind.MAPPING, "id_to_hash", "session_id", row.place))
        if user is not None:
            beside.append(Suggestion(sessions.TYPE, f"{APP}/{session}", {USER_FIELD: user}))
            notes.append(Note(NoteKind.MAPPING, "user_to_id", USER_FIELD, row.place))
        if row.others:
            notes.append(Note(NoteKind.MERGE, "files_of_session", "", row.place, row.others))
        return Planned(row, items, tuple(beside), tuple(notes), user)

    def _added_up(self, row: Row, found: AddedUp, batch: str) -> Planned:
        values = {**found.values, "batch": batch}
        metric = Suggestion(tool_metrics.TYPE, tool_metrics.record_id(FORM, found.key), values)
        return Planned(row, (), (metric,), (), self._people.id_of(found.user))


def _is_unusual(raw: Mapping[str, Any], event: Event) -> bool:
    """Return whether something was done to a call's values: nearly always not, so this is what every call costs."""
    return (
        event.tool != raw.get("tool_name")
        or event.duration_ms != raw.get("execution_time_ms")
        or event.session != raw.get("session_id")
        or type(raw.get("success")) is not bool
        or str(raw.get("timestamp"))[-1:] != "Z"
    )


def _changes_of_call(row: Row, call: ToolCall) -> list[Note]:
    raw, event, place = row.raw, call.event, row.place
    notes = []
    if event.tool != raw.get("tool_name", raw.get("toolName")):
        notes.append(Note(NoteKind.MAPPING, "name_to_other", "tool_name", place))
    if event.session != (raw.get("session_id", raw.get("sessionId")) or None):
        notes.append(Note(NoteKind.MAPPING, "id_to_hash", "session_id", place))
    for name, _ in _CUT_NUMBERS:
        value = raw.get(name)
        if value is None:
            continue
        if event.duration_ms is None:
            notes.append(Note(NoteKind.CLAMP, "no_count", name, place))
        elif event.duration_ms != value:
            notes.append(Note(NoteKind.CLAMP, "rounded", name, place))
    if "tool_name" in raw and type(raw.get("success")) is not bool:
        notes.append(Note(NoteKind.GUESS, "outcome_not_said", "success", place))
    if has_no_offset(raw.get("timestamp")):
        notes.append(Note(NoteKind.GUESS, "time_zone", "timestamp", place))
    return notes


def _change(row: Row, change: str) -> Note:
    """Return what the decoder did to a session's value as a note."""
    how, _, field = change.partition(".")
    return Note(NoteKind(how), f"session_{field}", field, row.place)
