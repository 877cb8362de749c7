"""How the lines of each kind of file become rows: one class a kind.

A form knows what it must of the lines before, in bounded memory, and packs it, so that a run that goes on in the middle
of a file reads the rest as if it had read all. What a line says is the decoders' matter (metricsd/decode), and for the
older hooks the same code that the daemon uses, so that one line has one id whoever reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from metricsd.decode.older_hooks import SessionNote, ToolCall, object_of, read_object
from metricsd.ids import Occurrences
from metricsd.migration.model import FileKind, Place, Row, Subject

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


def form_of(kind: FileKind, name: str, state: bytes) -> LineForm:
    """Return the form of a file's lines, going on from `state`."""
    return OlderForm(state)


def subject_of(name: str, kind: FileKind) -> Subject:
    """Return what a line of this file counts as when it cannot be read: what the file holds by its name."""
    if kind in (FileKind.TRANSCRIPT, FileKind.EXPORT):
        return Subject.OTHER_EVENT
    return Subject.SESSION if _HISTORY in name else Subject.TOOL_EVENT
