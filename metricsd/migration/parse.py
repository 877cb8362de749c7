"""Reads the source from a position on and cuts it into parts: rows, what was rejected, and the position behind them.

Sessions come first, merged from all their files; then the other entries of documents; then the lines, file by file. A
part is a function of the source and the position before it, so a run that was cut off is cut into the same parts again.
Memory holds one part. A source that is not what the survey read is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from metricsd import growing
from metricsd.decode.older_hooks import SessionNote, read_stored
from metricsd.errors import LineRejected, SourceChanged
from metricsd.migration.content import UNREADABLE, Content, items_of, whole
from metricsd.migration.forms import form_of, subject_of
from metricsd.migration.merging import merged
from metricsd.migration.model import Place, Position, Rejected, Row, SourceFile, Subject
from metricsd.migration.work import Entry, Work
from metricsd.reasons import Reason

PART_ROWS = 5000
PART_BYTES = 8 * 1024 * 1024
SESSIONS, ENTRIES, LINES, DONE = "sessions", "entries", "lines", "done"
START = Position(SESSIONS)


class Piece(NamedTuple):
    """One part of the source. `size` is how many bytes of lines it has."""

    rows: list[Row]
    rejected: list[Rejected]
    after: Position
    size: int


class Parser:
    """The parse of one run."""

    def __init__(self, work: Work, *, part_rows: int = PART_ROWS) -> None:
        self._work = work
        self._part_rows = part_rows
        self._rows: list[Row] = []
        self._rejected: list[Rejected] = []
        self._size = 0
        self._others = 0

    def parts(self, after: Position = START) -> Iterator[Piece]:
        """Yield what lies behind a position, part by part; the last one's position is DONE. Raises SourceChanged."""
        if after.stage == SESSIONS:
            yield from self._sessions(after)
            after = Position(ENTRIES)
        if after.stage == ENTRIES:
            yield from self._entries(after)
            after = Position(LINES)
        if after.stage == LINES:
            yield from self._lines(after)
            yield self._cut(Position(DONE))

    def _cut(self, after: Position) -> Piece:
        piece = Piece(self._rows, self._rejected, after, self._size)
        self._rows, self._rejected, self._size, self._others = [], [], 0, 0
        return piece

    @property
    def _is_full(self) -> bool:
        # A session that five entries tell of is as large as five rows.
        return len(self._rows) + len(self._rejected) + self._others >= self._part_rows or self._size >= PART_BYTES

    def _sessions(self, after: Position) -> Iterator[Piece]:
        for number, _, told in self._work.sessions(after.index):
            note = merged([one.note for one in told])
            first, *others = (one.place for one in told)
            self._rows.append(Row(first, Subject.SESSION, b"", {}, note, 0, tuple(others)))
            self._others += len(others)
            if self._is_full:
                yield self._cut(Position(SESSIONS, number))

    def _entries(self, after: Position) -> Iterator[Piece]:
        document = _Document(self._work)
        for entry in self._work.entries(after.index):
            self._entry(entry, document)
            if self._is_full:
                yield self._cut(Position(ENTRIES, entry.number))

    def _entry(self, entry: Entry, document: _Document) -> None:
        file = self._work.file(entry.file)
        place = Place(file.name, entry.line, 0)
        if entry.reason:
            data = document.bytes_of(file, entry)
            size = len(data) if data is not None else file.size
            subject = subject_of(file.name, file.kind)
            self._rejected.append(Rejected(place, subject, entry.reason, entry.detail, data, size))
            return
        item = document.item(file, entry)
        found = read_stored(item)
        if not isinstance(found, SessionNote):
            self._rows.append(Row(place, Subject.TOOL_EVENT, b"", item, found))

    def _lines(self, after: Position) -> Iterator[Piece]:
        for number in self._work.numbered_lines(after.index):
            start = after if number == after.index else Position(LINES, number)
            yield from self._file(number, self._work.file(number), start)

    def _file(self, number: int, file: SourceFile, start: Position) -> Iterator[Piece]:
        form = form_of(file.kind, start.occurrences, self._work.is_inactive)
        subject, name, line = subject_of(file.name, file.kind), file.name, start.line
        with _opened(file) as content:
            content.skip(start.offset)
            if start.offset and content.digest() != start.digest:
                raise _changed(file)
            for stretch in content.stretches():
                if stretch.skipped:
                    line += 1
                    place = Place(name, line, stretch.offset)
                    self._rejected.append(Rejected(place, subject, Reason.TOO_LONG.value, "", None, stretch.skipped))
                    continue
                data, offset, dealt, end = stretch.data, stretch.offset, 0, stretch.offset + len(stretch.data)
                for raw in data.split(b"\n"):
                    line += 1
                    if raw and not raw.isspace():
                        place = Place(name, line, offset)
                        try:
                            form.read(raw, place, self._rows)
                        except LineRejected as error:
                            is_cut = offset + len(raw) == end
                            reason, detail = (
                                (Reason.INCOMPLETE.value, "no final newline")
                                if is_cut
                                else (error.reason, error.detail)
                            )
                            self._rejected.append(Rejected(place, subject, reason, detail, raw, len(raw)))
                    offset += len(raw) + 1
                    self._size += len(raw) + 1
                    if self._is_full and form.may_cut and offset < end:
                        content.passed(data[dealt : offset - stretch.offset])
                        dealt = offset - stretch.offset
                        yield self._cut(Position(LINES, number, line, offset, form.state(), content.digest()))
                content.passed(data[dealt:] if dealt else data)
                line -= data.endswith(b"\n")
            form.end(self._rows)
            if content.digest() != file.digest:
                raise _changed(file)
            if self._is_full:
                yield self._cut(Position(LINES, number, line, content.offset, form.state(), content.digest()))


class _Document:
    """The document that was read last: an array's entries follow each other."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._number = 0
        self._data = b""
        self._items: list[Any] = []

    def item(self, file: SourceFile, entry: Entry) -> Any:
        """Return the object that an entry is."""
        self._read(file, entry)
        return self._items[entry.line - 1]

    def bytes_of(self, file: SourceFile, entry: Entry) -> bytes | None:
        """Return the bytes to keep of a rejected entry; None where they cannot be had."""
        if entry.reason in (Reason.UNREADABLE.value, Reason.TOO_LONG.value):
            return None
        self._read(file, entry)
        return self._data

    def _read(self, file: SourceFile, entry: Entry) -> None:
        if self._number == entry.file:
            return
        with _opened(file) as content:
            self._data = whole(content)
            if content.digest() != file.digest:
                raise _changed(file)
        self._number = entry.file
        try:
            self._items = items_of(self._data)
        except LineRejected:
            self._items = []


def check_unchanged(work: Work) -> None:
    """Raise SourceChanged if a file is not what was surveyed; one that has grown since is as it was.

    A look at its times and size is enough for nearly every file; one that looks different is read and compared.
    """
    for file in work.files():
        if file.digest in ("", UNREADABLE) or _stamp(file) == file.stamp:
            continue
        with _opened(file) as content:
            content.skip(file.size)
            if content.digest() != file.digest:
                raise _changed(file)


def _stamp(file: SourceFile) -> tuple[int, ...]:
    try:
        return growing.stamp_of(os.stat(file.path))  # noqa: PTH116 - a path object costs as much as the call itself
    except OSError:
        return ()


def _opened(file: SourceFile) -> Content:
    try:
        return Content(file.path, packed=file.packed, size=file.size)
    except OSError as error:
        raise SourceChanged(
            f"{file.path} cannot be opened any more ({error.strerror}): bring it back and resume"
        ) from error


def _changed(file: SourceFile) -> SourceChanged:
    return SourceChanged(
        f"{file.path} is not what was surveyed: put it back as it was and resume, or begin anew with `metricsd migrate run`"
    )
