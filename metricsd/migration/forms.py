"""How the lines of each kind of file become rows: one class a kind.

A form knows what it must of the lines before, in bounded memory, and packs it, so that a run that goes on in the middle
of a file reads the rest as if it had read all. What a line says is the decoders' matter (metricsd/decode), and for the
older hooks the same code that the daemon uses, so that one line has one id whoever reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from metricsd.clock import SystemClock
from metricsd.decode.exported import ExportedEvent, ExportedRecord, read_exported
from metricsd.decode.older_hooks import SessionNote, ToolCall, object_of, read_object
from metricsd.decode.transcript import Transcript
from metricsd.ids import Occurrences
from metricsd.migration.model import FileKind, Place, Row, Subject
from metricsd.model import Event, Kind
from metricsd.store.events import Identified
from metricsd.store.suggestions import Suggestion

_HISTORY = "session"


class LineForm(Protocol):
    """Reads the lines of one file, in order."""

    @property
    def may_cut(self) -> bool:
        """Whether a part may end here."""
        ...

    def read(self, data: bytes, place: Place, rows: list[Row]) -> None:
        """Add what a line says; raise LineRejected for one that cannot be read."""
        ...

    def end(self, rows: list[Row]) -> None:
        """Add what is left at the end of the file."""
        ...

    def state(self) -> bytes:
        """Return what the lines behind need of those before."""
        ...


class OlderForm:
    """Lines of the older hooks. What they say of sessions is the survey's, so only calls become rows here."""

    def __init__(self, state: bytes = b"") -> None:
        self._occurrences = Occurrences(state)
        self._announced: tuple[Place, bytes, Mapping[str, Any]] | None = None

    @property
    def may_cut(self) -> bool:
        """Whether no announcement waits for its call."""
        return self._announced is None

    def read(self, data: bytes, place: Place, rows: list[Row]) -> None:
        """Add a call; an agent's announcement belongs to the call of the next line."""
        line = object_of(data)
        found = read_object(line)
        if isinstance(found, ToolCall):
            occurrence = self._occurrences.next(found.fact)
            others: tuple[Place, ...] = ()
            if self._announced is not None:
                others = self._belongs(line, rows)
            rows.append(Row(place, Subject.TOOL_EVENT, data, line, found, occurrence, others))
            return
        self.end(rows)
        if found is None:
            self._announced = (place, data, line)
        elif not isinstance(found, SessionNote):
            rows.append(Row(place, Subject.TOOL_EVENT, data, line, found))

    def end(self, rows: list[Row]) -> None:
        """Add an announcement whose call never came: it tells of no call of its own."""
        if self._announced is not None:
            place, data, line = self._announced
            self._announced = None
            rows.append(Row(place, Subject.TOOL_EVENT, data, line, None))

    def state(self) -> bytes:
        """Return how often which facts came before."""
        return self._occurrences.pack()

    def _belongs(self, call: Mapping[str, Any], rows: list[Row]) -> tuple[Place, ...]:
        """Return the waiting announcement's place if it is this call's; one that is not stands alone."""
        if self._announced is None:
            return ()
        place, _, line = self._announced
        is_its = (line.get("timestamp"), line.get("agent_name")) == (call.get("timestamp"), call.get("subagent_type"))
        if not is_its:
            self.end(rows)
            return ()
        self._announced = None
        return (place,)


class TranscriptForm:
    """Lines of Claude Code's transcripts: any number of events each."""

    may_cut = True

    def __init__(self, state: bytes = b"") -> None:
        self._transcript = Transcript(SystemClock(), state)

    def read(self, data: bytes, place: Place, rows: list[Row]) -> None:
        """Add the events of a line."""
        for event_id, event in self._transcript.read(data):
            rows.append(Row(place, subject_of_event(event), data, {}, Identified(event_id, event)))

    def end(self, rows: list[Row]) -> None:
        """Add nothing: a call without its result may still get one."""

    def state(self) -> bytes:
        """Return the calls that wait for their results."""
        return self._transcript.pack()


class ExportForm:
    """Lines of `metricsd export`."""

    may_cut = True

    def __init__(self, is_inactive: Callable[[str], bool]) -> None:
        self._is_inactive = is_inactive

    def read(self, data: bytes, place: Place, rows: list[Row]) -> None:
        """Add an event or a record; what was taken back, or what a store derives itself, is an entry of nothing."""
        line = object_of(data)
        match read_exported(line):
            case ExportedEvent() as found:
                gone = found.batch is not None and self._is_inactive(found.batch)
                item = None if gone else Identified(found.id, found.event)
                rows.append(Row(place, subject_of_event(found.event), data, line, item))
            case ExportedRecord() as record:
                subject = Subject.SESSION if record.type == "session" else Subject.TOOL_EVENT
                rows.append(Row(place, subject, data, line, Suggestion(*record)))
            case None:
                return

    def end(self, rows: list[Row]) -> None:
        """Add nothing."""

    def state(self) -> bytes:
        """Return nothing: each line stands for itself."""
        return b""


def form_of(kind: FileKind, state: bytes, is_inactive: Callable[[str], bool]) -> LineForm:
    """Return the form of a file's lines, going on from `state`; `is_inactive` says which imports were taken back."""
    match kind:
        case FileKind.TRANSCRIPT:
            return TranscriptForm(state)
        case FileKind.EXPORT:
            return ExportForm(is_inactive)
        case _:
            return OlderForm(state)


def subject_of_event(event: Event) -> Subject:
    """Return what an event counts as."""
    if event.kind == Kind.TOOL_USED:
        return Subject.TOOL_EVENT
    return Subject.SESSION if event.kind == Kind.SESSION_STARTED else Subject.OTHER_EVENT


def subject_of(name: str, kind: FileKind) -> Subject:
    """Return what a line of this file counts as when it cannot be read: what the file holds by its name."""
    if kind in (FileKind.TRANSCRIPT, FileKind.EXPORT):
        return Subject.OTHER_EVENT
    return Subject.SESSION if _HISTORY in name else Subject.TOOL_EVENT
