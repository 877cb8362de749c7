"""Runs the small migration again and again, each time with another fault, and counts the faults that are noticed.

One run without a fault comes first: what is reported there is no fault's doing, and a check that cries without a cause
has found nothing. Every run uses the real parse, transform and load, into a store whose transaction is taken back, and the
real comparison with the second reader's rows.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import msgspec
from msgspec import Struct

from metricsd.decode.older_hooks import SessionNote
from metricsd.errors import MetricsdError
from metricsd.migration.compare import Comparer
from metricsd.migration.digest import new_key
from metricsd.migration.load import StoreSink
from metricsd.migration.merging import merged
from metricsd.migration.model import Counts, FileKind, Part, batch_name
from metricsd.migration.parse import Parser
from metricsd.migration.people import CREATE, make_people
from metricsd.migration.reconcile import differences
from metricsd.migration.second.books import Books
from metricsd.migration.second.files import File
from metricsd.migration.second.reader import BOOKS, Reader, Reading, Task
from metricsd.migration.second_process import as_told
from metricsd.migration.sensitivity.faults import KINDS, TRIES, Kind, Line, Victims
from metricsd.migration.sensitivity.seams import Seams, opened
from metricsd.migration.side import Side
from metricsd.migration.survey import survey
from metricsd.migration.target_store import StoreTarget
from metricsd.migration.transform import Transform
from metricsd.migration.work import Work
from metricsd.store.connection import Store

FAULTS = 1000
RUN = "check"
_NO_FAULT = Seams()


class OfKind(Struct):
    """How many faults of one kind were put in, and how many of them were noticed."""

    name: str
    stage: str
    seeded: int = 0
    found: int = 0


class Sensitivity(Struct, frozen=True):
    """What came of it. `kinds` in the order of the catalogue; `rows` is the size of the sample."""

    seeded: int
    found: int
    kinds: tuple[OfKind, ...]
    seed: int
    rows: int
    seconds: float


class _TakenBack(Exception):
    """Ends the transaction of one small run."""


class _Scratch(Store):
    """A store whose transactions are savepoints of one that is taken back."""

    @contextlib.contextmanager
    def transaction(self, *, full: bool = False) -> Iterator[object]:  # type: ignore[override]
        self.db.execute("SAVEPOINT small")
        try:
            yield self.db
        except BaseException:
            self.terms.forget()
            self.db.execute("ROLLBACK TO small")
            self.db.execute("RELEASE small")
            raise
        self.db.execute("RELEASE small")


class Bench:
    """The sample, read by both readers, and the store that faults are put into."""

    def __init__(self, source: Path, folder: Path, now_us: int) -> None:
        self._folder = folder
        self._now_us = now_us
        self._work = Work(folder / "sample.db")
        survey(self._work, [source], progress=lambda _: None)
        self._store = _Scratch.open(folder / "scratch.db")
        self._key = new_key()
        reader = Reader(folder, Task(self._key.hex(), now_us))
        files = [as_told(number, file) for number, file in enumerate(self._work.files())]
        self._reading: Reading = reader.read(File(*one) for one in files if one.kind != FileKind.IGNORED.value)
        self._side = reader.side
        self._books = Books(folder / BOOKS)
        self.victims = _victims(source, self._work)
        self.rows = reader.side.rows

    def notices(self, seams: Seams) -> bool:
        """Return whether the comparison notices anything after a run with this fault."""
        noticed = False
        with contextlib.suppress(_TakenBack):
            self._store.db.execute("BEGIN IMMEDIATE")
            try:
                noticed = self._differs(seams)
                raise _TakenBack
            finally:
                self._store.db.execute("ROLLBACK")
                self._store.terms.forget()
        return noticed

    def close(self) -> None:
        """Let go of everything."""
        self._books.close()
        self._store.close()
        self._work.close()

    def _differs(self, seams: Seams) -> bool:
        with opened(seams):
            try:
                counts = self._migrate(seams)
            except MetricsdError:
                # A run that breaks off has noticed more than a comparison would.
                return True
        if seams.stored is not None:
            try:
                seams.stored(self._store.db)
            except sqlite3.IntegrityError:
                # The types of the tables refuse such a value: it could not come to be there.
                return True
        target = StoreTarget(self._store.db, RUN)
        side = Side(self._folder / "target")
        target.read_events(side, self._key, everything=False)
        comparer = Comparer()
        comparer.rows(self._side, side)
        comparer.records(self._books, target, self._key, self._now_us - 1)
        found = comparer.finish(())
        return bool(found.unfaithful or found.differing or differences(counts, self._reading, found, excluded=0))

    def _migrate(self, seams: Seams) -> Counts:
        transform = Transform(self._work, make_people(CREATE, None, None))
        sink = StoreSink(self._store, RUN, RUN)
        counts = Counts()
        for number, piece in enumerate(Parser(self._work).parts(), start=1):
            planned = [transform.plan(row, batch_name(RUN, number)) for row in piece.rows]
            if seams.plan is not None:
                planned = seams.plan(planned)
            part = Part(RUN, number, planned, piece.rejected, piece.after)
            counts += sink.take(part, lambda _: 0).counts
        return counts


def measure(
    bench: Bench, *, seed: int, faults: int = FAULTS, tell: Callable[[int], None] = lambda _: None
) -> Sensitivity:
    """Put in `faults` faults, of all kinds in turn, and count what is noticed; the same seed gives the same faults.

    Raises MetricsdError when the run without a fault already differs: then nothing that follows would mean anything.
    """
    began = time.perf_counter()
    if bench.notices(_NO_FAULT):
        raise MetricsdError("the comparison finds differences in a sample without a fault: report this as a bug")
    of = [OfKind(kind.name, kind.stage) for kind in KINDS]
    random = Random(seed)  # noqa: S311 - the same seed must give the same faults
    for number in range(faults):
        index = number % len(KINDS)
        seams = _seeded(KINDS[index], random, bench.victims)
        of[index].seeded += 1
        of[index].found += bench.notices(seams)
        tell(number + 1)
    seeded, found = sum(kind.seeded for kind in of), sum(kind.found for kind in of)
    return Sensitivity(seeded, found, tuple(of), seed, bench.rows, time.perf_counter() - began)


def _seeded(kind: Kind, random: Random, victims: Victims) -> Seams:
    for _ in range(TRIES):
        seams = kind.make(random, victims)
        if seams is not None:
            return seams
    raise MetricsdError(f"no victim for a fault of the kind {kind.name!r} in the sample")


def _victims(source: Path, work: Work) -> Victims:
    lines = []
    for number, raw in enumerate((source / "tool-metrics.jsonl").read_bytes().split(b"\n"), start=1):
        with contextlib.suppress(ValueError):
            line = json.loads(raw)
            if isinstance(line, dict) and line.get("event_type") == "tool_execution":
                lines.append(Line(number, raw.rstrip(), line))
    notes: list[SessionNote] = [merged([one.note for one in told]) for _, _, told in work.sessions(0)]
    return Victims(lines, notes)


def encode(found: Sensitivity) -> bytes:
    """Return the result as JSON."""
    return msgspec.json.encode(found)


def decode(data: bytes) -> Sensitivity:
    """Return what `encode` was given."""
    return msgspec.json.decode(data, type=Sensitivity)
