"""The lines of the older hooks' growing files: calls, and the history of sessions.

Calls that were written without their session are given the one that ran at their time; the id of an event comes from
the line as it stands, so the same line is the same event whatever was known when it was read.
"""

from __future__ import annotations

import msgspec

from metricsd.decode.older_hooks import (
    APP,
    FORM,
    NO_SESSION,
    AddedUp,
    Found,
    SessionNote,
    ToolCall,
    read_line,
    session_events,
)
from metricsd.errors import LineRejected
from metricsd.ids import Occurrences
from metricsd.lines import Chunk, Unit
from metricsd.model import Event
from metricsd.older.sessions import OlderSessions
from metricsd.store import tool_metrics
from metricsd.store.events import Identified
from metricsd.store.legacy_extra import SESSION, Extra
from metricsd.store.quarantine import Reject
from metricsd.store.suggestions import Suggestion


class OlderLines:
    """Lines of `tool-metrics.jsonl` and `session-history.jsonl`."""

    name = FORM

    def __init__(self, sessions: OlderSessions) -> None:
        self._sessions = sessions

    def decode(self, chunk: Chunk, occurrences: Occurrences, unit: Unit) -> None:
        """Add what each line says."""
        offset = chunk.offset
        for raw in chunk.data.split(b"\n"):
            if raw and not raw.isspace():
                try:
                    found = read_line(raw)
                except LineRejected as rejected:
                    unit.rejects.append(Reject(chunk.name, offset, raw, rejected.reason, rejected.detail))
                else:
                    if found is not None:
                        add(unit, found, occurrences, self._sessions)
            offset += len(raw) + 1


def add(unit: Unit, found: Found, occurrences: Occurrences, sessions: OlderSessions) -> None:
    """Add what was found to a unit, and remember sessions."""
    match found:
        case ToolCall():
            unit.items.append(Identified(found.id(occurrences.next(found.fact)), _owned(found, sessions)))
        case SessionNote():
            sessions.note(found)
            unit.items.extend(Identified(event_id, event) for event_id, event in session_events(found))
            unit.beside.extend(beside_of(found))
        case AddedUp():
            unit.beside.append(Suggestion(tool_metrics.TYPE, tool_metrics.record_id(FORM, found.key), found.values))


def _owned(call: ToolCall, sessions: OlderSessions) -> Event:
    event = call.event
    if event.session is not None and event.session not in NO_SESSION:
        return event
    owner = sessions.owner(call.user, event.at)
    return event if owner is None else msgspec.structs.replace(event, session=owner)


def beside_of(note: SessionNote) -> list[Suggestion | Extra]:
    """Return what a session's file tells beside its times: the score for the record, the rest for older clients."""
    who_and_where = {"user": note.user, "working_directory": note.directory, "git_branch": note.branch}
    kept = {name: value for name, value in {**who_and_where, **note.kept}.items() if value}
    found: list[Suggestion | Extra] = [Extra(SESSION, note.session, kept)] if kept else []
    values = dict(note.fields) if note.score is None else {**note.fields, "score": note.score}
    if values:
        found.append(Suggestion("session", f"{APP}/{note.session}", values))
    return found
