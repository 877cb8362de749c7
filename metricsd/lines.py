"""From the bytes of a growing file to what is stored: one class for each form that lines may have.

A form's name is part of its events' ids and of its checkpoints. Decoding a chunk is a pure function of the chunk and
of how often equal facts came before it in the file: reading again gives the same ids. A bad line is rejected with
its place, and the rest goes on.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from metricsd.clock import Clock
from metricsd.decode import decode_line, parse_line
from metricsd.decode.envelope import stamp_us
from metricsd.decode.repository import Repositories
from metricsd.errors import LineRejected
from metricsd.ids import Occurrences, line_fact, line_id
from metricsd.store.events import Identified
from metricsd.store.ingest import Beside
from metricsd.store.quarantine import Reject

SHARED_FORM = "shared"


class Chunk(NamedTuple):
    """Whole lines of one file: the file's name, and where in it they begin."""

    name: str
    offset: int
    data: bytes


class Unit(NamedTuple):
    """What is stored together: events, what else the lines told, and what could not be read. Filled by a form."""

    items: list[Identified]
    beside: list[Beside]
    rejects: list[Reject]


class Form(Protocol):
    """How the lines of some files are read."""

    @property
    def name(self) -> str:
        """The form's name; part of ids, so it never changes."""
        ...

    @property
    def keeps_bytes(self) -> bool:
        """Whether the bytes of a bad line may be kept in quarantine."""
        ...

    def decode(self, chunk: Chunk, occurrences: Occurrences, unit: Unit) -> None:
        """Add to `unit` what the chunk's lines say."""
        ...


class SharedLines:
    """Lines of the spool's shared files: the same wrapper that captures have."""

    name = SHARED_FORM
    keeps_bytes = True

    def __init__(self, repositories: Repositories, clock: Clock) -> None:
        self._repositories = repositories
        self._clock = clock

    def decode(self, chunk: Chunk, occurrences: Occurrences, unit: Unit) -> None:
        """Add an event for each line."""
        offset, data = chunk.offset, chunk.data
        now_us = self._clock.now_us()
        repositories = self._repositories
        count = occurrences.next
        append = unit.items.append
        has_nul = b"\0" in data
        for raw in data.split(b"\n"):
            if raw and not raw.isspace():
                try:
                    # NULs before a line are the hole that a truncation left under a writer that kept its place.
                    line = parse_line(raw.lstrip(b"\0") or raw if has_nul else raw)
                    at_us = stamp_us(line)
                    e = decode_line(line, now_us if at_us is None else at_us, repositories)
                except LineRejected as rejected:
                    unit.rejects.append(Reject(chunk.name, offset, raw, rejected.reason, rejected.detail))
                else:
                    stamp = "" if at_us is None else str(at_us)
                    fact = line_fact(SHARED_FORM, stamp, line.id, e.session, e.kind, e.tool, e.outcome, e.duration_ms)
                    append(Identified(line_id(fact, 0 if at_us is None else at_us // 1000, count(fact)), e))
            offset += len(raw) + 1
