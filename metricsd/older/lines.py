"""The lines of the older hooks' growing files: calls, and the history of sessions.

Calls that were written without their session are given the one that ran at their time; the id of an event comes from
the line as it stands, so the same line is the same event whatever was known when it was read. What a bad line holds
is not kept, because such lines are full of commands and tokens: it stays in its folder.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from metricsd.clock import US_PER_MS
from metricsd.decode.names import repeated_id
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
from metricsd.ids import EventId, Occurrences, line_fact, line_id
from metricsd.lines import Chunk, Unit
from metricsd.model import Event, Kind
from metricsd.older.sessions import OlderSessions
from metricsd.store import tool_metrics
from metricsd.store.events import Identified
from metricsd.store.legacy_extra import SESSION, Extra
from metricsd.store.orphans import Caller
from metricsd.store.quarantine import Reject
from metricsd.store.suggestions import Suggestion


class OlderLines:
    """Lines of `tool-metrics.jsonl` and `session-history.jsonl`."""

    name = FORM
    keeps_bytes = False

    def __init__(self, sessions: OlderSessions, before: Callable[[], None]) -> None:
        """`before` is called when lines were read, before they are decoded: to look for their sessions' documents."""
        self._sessions = sessions
        self._before = before

    def decode(self, chunk: Chunk, occurrences: Occurrences, unit: Unit) -> None:
        """Add what each line says."""
        self._before()
        adding = Adding(unit, occurrences, self._sessions, chunk.name)
        offset = chunk.offset
        for raw in chunk.data.split(b"\n"):
            if raw and not raw.isspace():
                try:
                    found = read_line(raw)
                except LineRejected as rejected:
                    unit.rejects.append(bad_line(chunk.name, offset, raw, rejected))
                else:
                    if found is not None:
                        adding.add(found)
            offset += len(raw) + 1
        adding.finish()


def bad_line(name: str, offset: int, raw: bytes, rejected: LineRejected) -> Reject:
    """Return what is kept of a line that is none of the hooks': where it is, how long, and why."""
    return Reject(name, offset, None, rejected.reason, rejected.detail, len(raw))


class Adding:
    """Adds what one file, or a part of one, says to a unit."""

    def __init__(self, unit: Unit, occurrences: Occurrences, sessions: OlderSessions, source: str) -> None:
        self._unit = unit
        self._occurrences = occurrences
        self._sessions = sessions
        self._source = source
        self._callers: set[str] = set()
        self._told: dict[str, Suggestion] = {}

    def add(self, found: Found) -> None:
        """Add one thing that was found, and remember sessions."""
        match found:
            case ToolCall():
                self._add_call(found)
            case SessionNote():
                self._add_session(self._named(found))
            case AddedUp():
                record_id = tool_metrics.record_id(FORM, found.key)
                self._tell(Suggestion(tool_metrics.TYPE, record_id, found.values, self._source))

    def finish(self) -> None:
        """Add what the file tells of records: its last word, so that reading it again does not bring back an earlier one."""
        self._unit.beside.extend(self._told.values())

    def _tell(self, suggestion: Suggestion) -> None:
        self._told[f"{suggestion.type}/{suggestion.id}"] = suggestion

    def _add_call(self, call: ToolCall) -> None:
        event = call.event
        if event.session is None or event.session in NO_SESSION:
            event = self._owned(call)
        self._unit.items.append(Identified(call.id(self._occurrences.next(call.fact)), event))

    def _owned(self, call: ToolCall) -> Event:
        """Return a call with the session that ran at its time; without one it waits for a document that comes later."""
        owner = self._sessions.owner(call.user, call.event.at)
        if owner is not None:
            # As events have it: an id that does not look like one is kept as its hash.
            return msgspec.structs.replace(call.event, session=repeated_id(owner))
        if call.user is not None and call.user not in self._callers:
            self._callers.add(call.user)
            self._unit.beside.append(Caller(call.user))
        return call.event

    def _named(self, note: SessionNote) -> SessionNote:
        """Return a note of an end with its session: hooks that did not find it wrote the end under a stand-in's name."""
        if note.session not in NO_SESSION or note.start_us is not None or note.end_us is None:
            return note
        owner = self._sessions.ended_at(note.end_us) or self._sessions.owner(note.user, note.end_us)
        return note if owner is None else note._replace(session=owner)

    def _add_session(self, note: SessionNote) -> None:
        unit = self._unit
        self._sessions.note(note)
        for event_id, event in session_events(note):
            unit.items.append(Identified(event_id, event))
            if event.kind == Kind.SESSION_ENDED and self._sessions.ended_before(str(event.session), event.at):
                # The id of an end is its session's alone; one that was ended again has a second end of its own.
                unit.items.append(Identified(_id_of_later_end(event), event))
        # A strange id is stored as its hash, which no record's id is too long for.
        session = repeated_id(note.session) or note.session
        for one in beside_of(note._replace(session=session), self._source):
            if isinstance(one, Suggestion):
                self._tell(one)
            else:
                unit.beside.append(one)


def beside_of(note: SessionNote, source: str = "") -> list[Suggestion | Extra]:
    """Return what a session's file tells beside its times: values for the record, the rest for older clients."""
    who_and_where = {"user": note.user, "working_directory": note.directory, "git_branch": note.branch}
    kept = {name: value for name, value in {**who_and_where, **note.kept}.items() if value}
    found: list[Suggestion | Extra] = [Extra(SESSION, note.session, kept)] if kept else []
    values = dict(note.fields) if note.score is None else {**note.fields, "score": note.score}
    if values:
        found.append(Suggestion("session", f"{APP}/{note.session}", values, source))
    return found


def _id_of_later_end(event: Event) -> EventId:
    fact = line_fact(FORM, str(event.at), None, event.session, event.kind, None, None, None)
    return line_id(fact, event.at // US_PER_MS, 0)
