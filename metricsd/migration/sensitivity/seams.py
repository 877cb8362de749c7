"""Where a fault can be put into the stages of a migration: inside parse, transform and load, and into what was stored.

The stages have no hooks for this; for the time of one small run their functions are replaced by ones that pass what goes
through to a fault. That happens in the process of this check alone, never in the one that migrates.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from metricsd.decode.older_hooks import SessionNote
from metricsd.migration import merging, parse
from metricsd.migration.forms import OlderForm
from metricsd.migration.model import Place, Planned, Row
from metricsd.store import events
from metricsd.store.connection import Store
from metricsd.store.events import Identified, Inserted
from metricsd.store.ingest import Beside
from metricsd.store.legacy_extra import Extra
from metricsd.store.suggestions import Suggestion


class Seams(NamedTuple):
    """What a fault does, seam by seam. Each is given what goes through, and returns what goes on.

    line    parse: the number of a line in its file, its bytes -> the lines that are read in its place
    note    parse: a merged session
    plan    transform: all rows of a part
    insert  load: the events of a part
    put     load: a value beside events -> whether it is written
    stored  the target's database, after the last part
    """

    line: Callable[[int, bytes], Sequence[bytes]] | None = None
    note: Callable[[SessionNote], SessionNote] | None = None
    plan: Callable[[list[Planned]], list[Planned]] | None = None
    insert: Callable[[list[Identified]], list[Identified]] | None = None
    put: Callable[[Beside], bool] | None = None
    stored: Callable[[sqlite3.Connection], None] | None = None


@contextlib.contextmanager
def opened(seams: Seams) -> Iterator[None]:
    """Put the fault in for the time of a block; transform and target are the caller's to pass through."""
    with contextlib.ExitStack() as stack:
        if seams.line is not None:
            stack.enter_context(_replaced(OlderForm, "read", _reading(seams.line)))
        if seams.note is not None:
            stack.enter_context(_replaced(parse, "merged", _merging(seams.note)))
        if seams.insert is not None:
            stack.enter_context(_replaced(events, "insert", _inserting(seams.insert)))
        if seams.put is not None:
            for kind in (Suggestion, Extra):
                stack.enter_context(_replaced(kind, "put", _putting(kind.put, seams.put)))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _reading(fault: Callable[[int, bytes], Sequence[bytes]]) -> Callable[..., None]:
    kept = OlderForm.read

    def read(self: OlderForm, data: bytes, place: Place, rows: list[Row]) -> None:
        for one in fault(place.line, data):
            kept(self, one, place, rows)

    return read


def _merging(fault: Callable[[SessionNote], SessionNote]) -> Callable[[Sequence[SessionNote]], SessionNote]:
    kept = merging.merged

    def merged(notes: Sequence[SessionNote]) -> SessionNote:
        return fault(kept(notes))

    return merged


def _inserting(fault: Callable[[list[Identified]], list[Identified]]) -> Callable[..., Inserted]:
    kept = events.insert

    def insert(store: Store, items: Sequence[Identified], *, device: int) -> Inserted:
        return kept(store, fault(list(items)), device=device)

    return insert


def _putting(kept: Callable[..., None], fault: Callable[[Beside], bool]) -> Callable[..., None]:
    def put(self: Beside, store: Store) -> None:
        if fault(self):
            kept(self, store)

    return put
