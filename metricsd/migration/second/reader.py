"""Reads a whole source a second time and writes down what should have arrived: rows, counts and figures.

Runs in a process of its own beside the migration (`python -m metricsd.migration.second FOLDER`), so that it costs the
other core, and leaves its result in files of a private folder: `reading.json`, the rows (side.py), and a database of
sessions. Memory stays flat at any size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from metricsd.migration.bounds import AHEAD_US, FIRST_US, RECORD_ID_BYTES_MAX
from metricsd.migration.digest import Cell, Row, RowHash
from metricsd.migration.figures import Figures
from metricsd.migration.memory import peak_rss_mb
from metricsd.migration.rows import EVENT, EVENT_COLUMNS, SESSION_ENDED, SESSION_STARTED, TOOL_METRIC, TOOL_USED, day_of
from metricsd.migration.second import files, lines
from metricsd.migration.second.books import Books, Kept
from metricsd.migration.second.exports import Batch, Event, Record, read_exported
from metricsd.migration.second.files import File
from metricsd.migration.second.lines import Announced, Call, Figure, read_document, read_json, read_line
from metricsd.migration.second.numbers import Numbers
from metricsd.migration.second.sessions import Note, project_name
from metricsd.migration.second.shapes import Bad
from metricsd.migration.second.transcripts import Transcript
from metricsd.migration.second.wire import Sent, Wire
from metricsd.migration.second.words import session_id
from metricsd.migration.side import Side

TASK, FILES, READING, SIDE, BOOKS = "task.json", "files.jsonl", "reading.json", "source", "books.db"
NO_SESSION = ("default-session", "default")
_TOO_LONG, _UNREADABLE = Bad("too_long"), Bad("unreadable")
_TOOL = EVENT_COLUMNS.index("tool")
_OUTCOME, _DURATION = EVENT_COLUMNS.index("outcome"), EVENT_COLUMNS.index("duration_ms")
_NAMES = {True: (SESSION_STARTED, "session_start"), False: (SESSION_ENDED, "session_end")}


class Task(msgspec.Struct, frozen=True):
    """What to read: the key of the run's hashes, and the time against which the future is told."""

    key: str
    now_us: int
    wire: Sent | None = None
    """How rows leave this machine, where the target is the cloud."""


class Reading(msgspec.Struct):
    """What was read.

    calls, announced, notes, figures, others   entries of each kind; `notes` tell of a session, `others` are of other tools
    bad         entries that cannot be taken, by reason; `refused` those that a rule keeps out, by rule
    sessions    merged sessions that should have arrived
    cells       what the rows are added up by, in the order of their numbers; `rows` how many rows were written
    """

    calls: int = 0
    announced: int = 0
    notes: int = 0
    figures: int = 0
    others: int = 0
    sessions: int = 0
    bad: dict[str, int] = msgspec.field(default_factory=dict)
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    cells: list[Cell] = msgspec.field(default_factory=list)
    by: Figures = msgspec.field(default_factory=Figures)
    peak_rss_mb: float = 0.0


class Reader:
    """One reading of one source."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder = folder
        self._hash = RowHash(bytes.fromhex(task.key))
        self._latest_us = task.now_us + AHEAD_US
        self.side = Side(folder / SIDE)
        self._sent = None if task.wire is None else Wire(task.wire)
        self._books = Books(folder / BOOKS, create=True)
        self._cell_numbers: dict[tuple[int, str], int] = {}
        self._announced: tuple[object, object] | None = None
        self._bad: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self.reading = Reading()

    def read(self, found: Iterable[File]) -> Reading:
        """Read every file, settle sessions, and return what there was."""
        self._books.begin()
        for file in found:
            self._file(file)
        self._settle_sessions()
        self._settle_unowned()
        self._books.end()
        self._books.close()
        reading = self.reading
        reading.bad, reading.refused = dict(self._bad), dict(self._refused)
        reading.cells, reading.rows = self.side.cells, self.side.rows
        return reading

    def _file(self, file: File) -> None:
        numbers = Numbers()
        self._announced = None
        self.reading.bytes += file.size
        try:
            if file.kind == "older_lines":
                for number, raw in files.lines(file):
                    self._take(_TOO_LONG if raw is None else read_line(raw), numbers, file, number)
            elif file.kind == "older_document":
                for number, entry in enumerate(_items(file), start=1):
                    self._take(entry, None, file, number)
            elif file.kind == "transcript":
                self._transcript(file)
            elif file.kind == "export":
                self._export(file)
        except files.FAULTS:
            self._bad[_UNREADABLE.reason] += 1

    def _take(self, entry: lines.Entry, numbers: Numbers | None, file: File, line: int) -> None:
        announced = self._announced
        if not isinstance(entry, Bad):
            self._announced = None
        if isinstance(entry, Call):
            self.reading.calls += 1
            is_announced = announced is not None and announced == entry.whose
            # A document is one call's own, so there is nothing to number.
            number = numbers.next(entry.fact) if numbers else 0
            self._call(entry, number, file.number << 32 | line, 1 + is_announced)
        elif isinstance(entry, Note):
            self.reading.notes += 1
            self._books.note(entry, file.rank, file.number, line)
        elif isinstance(entry, Figure):
            self.reading.figures += 1
            self._books.figure(TOOL_METRIC, lines.metric_id(entry.key), file.number << 32 | line, entry.values)
        elif isinstance(entry, Announced):
            self.reading.announced += 1
            self._announced = entry.whose
        else:
            self._bad[entry.reason] += 1

    def _transcript(self, file: File) -> None:
        transcript = Transcript()
        for number, raw in files.lines(file):
            found = _TOO_LONG if raw is None else transcript.read(raw)
            if isinstance(found, Bad):
                self._bad[found.reason] += 1
                continue
            for fact in found:
                self.reading.others += 1
                if not self._refused_at(fact.at):
                    self._books.transcribed(fact.identity, fact.session)
                    self._add(fact.identity, fact.row, fact.at, fact.tool, file.number << 32 | number)

    def _export(self, file: File) -> None:
        gone = {
            found.id for raw in _raws(file) if b"import_batch" in raw and isinstance(found := read_exported(raw), Batch)
        }
        for number, raw in files.lines(file):
            found = _TOO_LONG if raw is None else read_exported(raw)
            place = file.number << 32 | number
            if isinstance(found, Bad):
                self._bad[found.reason] += 1
            elif isinstance(found, Record):
                self.reading.others += 1
                self._books.figure(found.kind, found.id, place, found.values)
            elif isinstance(found, Event):
                self.reading.others += 1
                if found.batch not in gone and not self._refused_at(found.at):
                    self._add(found.identity, found.row, found.at, found.tool, place)

    def _refused_at(self, at: int) -> bool:
        refused = self._refusal(at)
        if refused is not None:
            self._refused[refused] += 1
        return refused is not None

    def _add(self, identity: int, row: Row, at: int, tool: str | None, place: int) -> None:
        if self._sent is not None:
            row = self._sent(row)
            tool = None if tool is None else str(row[_TOOL])
        self.side.add(identity, self._hash(row), self._cell(day_of(at), tool or ""), place)
        if row[0] == TOOL_USED:
            duration = row[_DURATION]
            self.reading.by.call(tool or "", row[_OUTCOME] != "ok", duration if isinstance(duration, int) else None)

    def _call(self, call: Call, number: int, place: int, entries: int) -> None:
        refused = self._refusal(call.at)
        if refused is not None:
            self._refused[refused] += entries
            return
        if call.session is None or call.session in NO_SESSION:
            self._books.unowned(call.at, call.user, [call._replace(whose=None), number, place])
            return
        self._row(call, number, place, session_id(call.session))

    def _row(self, call: Call, number: int, place: int, session: str | None) -> None:
        at, tool, outcome, duration = call.at, call.tool, call.outcome, call.duration_ms
        row: Row = (
            TOOL_USED, lines.APP, lines.CALL_NAME, at, session, tool, outcome, duration, None, None, None, None,
            call.agent, call.subject, None, None, call.output_bytes, call.lines_added, call.lines_removed, call.extra,
        )  # fmt: skip
        if self._sent is not None:
            row = self._sent(row)
            tool = str(row[_TOOL])
        day = day_of(at)
        cell = self._cell_numbers.get((day, tool))
        if cell is None:
            cell = self._cell(day, tool)
        self.side.add(lines.call_identity(call.fact, number), self._hash(row), cell, place)
        self.reading.by.call(tool, outcome != "ok", duration)

    def _cell(self, day: int, tool: str) -> int:
        number = self.side.number(Cell(EVENT, day, tool))
        if len(self._cell_numbers) >= len(self.side.cells) * 2:
            # Names that were folded into one cell are not worth remembering one by one.
            self._cell_numbers.clear()
        self._cell_numbers[(day, tool)] = number
        return number

    def _settle_sessions(self) -> None:
        for note, place, entries in self._books.merged():
            refused = self._session_refusal(note)
            if refused is not None:
                self._refused[refused] += entries
            else:
                self._edges(note, place)
                self.reading.sessions += 1
                self.reading.by.session(note.start, note.end, note.user, note.score, project_name(note))
            self._books.settle(Kept(note, place, refused or ""))

    def _edges(self, note: Note, place: int) -> None:
        project = project_name(note)
        for starts, at in ((True, note.start), (False, note.end)):
            if at is not None:
                kind, name = _NAMES[starts]
                row: Row = (
                    kind, lines.APP, name, at, session_id(note.session), None, None, None, None, project, note.branch,
                    None, None, None, None, None, None, None, None, None,
                )  # fmt: skip
                self._add(lines.edge_identity(note.session, starts=starts), row, at, None, place)

    def _settle_unowned(self) -> None:
        for (values, number, place), owner in self._books.owned():
            call = Call(*values)
            call = call._replace(extra=None if call.extra is None else tuple(call.extra))
            session = owner if owner is not None else call.session
            self._row(call, number, place, None if session is None else session_id(session))

    def _session_refusal(self, note: Note) -> str | None:
        for at in (note.start, note.end):
            refused = None if at is None else self._refusal(at)
            if refused is not None:
                return refused
        if note.start is not None and note.end is not None and note.end < note.start:
            return "end_before_start"
        if len(f"{lines.APP}/{note.session}".encode("utf-8", "surrogatepass")) > RECORD_ID_BYTES_MAX:
            return "session_id_too_long"
        return None

    def _refusal(self, at: int) -> str | None:
        if at < FIRST_US:
            return "time_too_early"
        return "time_in_future" if at > self._latest_us else None


def _raws(file: File) -> Iterator[bytes]:
    return (raw for _, raw in files.lines(file) if raw is not None)


def _items(file: File) -> list[lines.Entry]:
    data = files.document(file)
    if data is None:
        return [_TOO_LONG]
    value = read_json(data)
    return [read_document(item) for item in value] if isinstance(value, list) else [read_document(value)]


def main(folder: Path) -> None:
    """Read what `folder` asks for, and leave the result there."""
    task = msgspec.json.decode((folder / TASK).read_bytes(), type=Task)
    with (folder / FILES).open(encoding="utf-8", errors="surrogateescape") as listed:
        reader = Reader(folder, task)
        reading = reader.read(File(*json.loads(line)) for line in listed)
    reader.side.flush()
    reading.peak_rss_mb = peak_rss_mb()
    partial = folder / f"{READING}.partial"
    partial.write_bytes(msgspec.json.encode(reading))
    partial.replace(folder / READING)
