"""Reads every file of the source once, before anything is loaded: its size and hash, and what it says of sessions.

Calls that were written without a session need the sessions to be known first, and one session is told of by several
files, so this comes before the parse. It is quick because lines of calls are only looked at, not decoded. What cannot be
taken in a document is noted here and rejected by the parse, in the order of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from metricsd import growing
from metricsd.decode.older_hooks import SessionNote, object_of, read_object, read_stored
from metricsd.errors import LineRejected
from metricsd.migration.content import UNREADABLE, Content, items_of, whole
from metricsd.migration.discover import find_files, reading_group
from metricsd.migration.merging import merged
from metricsd.migration.model import FileKind, Place, SourceFile
from metricsd.migration.work import Entry, Surveyed, Told, Work
from metricsd.reasons import Reason

FILES_PER_STEP = 500
BYTES_PER_STEP = 16 * 1024 * 1024
"""After so much the survey notes how far it came."""
_CALL = b'"event_type"'
_BATCH = b'"import_batch"'
_BATCH_WITHIN = 64
TOLD_HELD_MAX = 2000

Progress = Callable[[int], None]


def survey(work: Work, roots: list[Path], *, progress: Progress) -> None:
    """List and read the source into the run's database; `progress` is told how many bytes more were read.

    Goes on where a cut-off survey ended; one that is done is left as it is.
    """
    if work.is_surveyed:
        return
    if not work.fact("listed"):
        work.list_files((reading_group(file), file) for file in find_files(roots))
    done: list[tuple[int, Surveyed]] = []
    size = 0
    for number, file in work.unsurveyed():
        found = _survey(work, number, file)
        done.append((number, found))
        size += found.size
        progress(found.size)
        if len(done) >= FILES_PER_STEP or size >= BYTES_PER_STEP:
            work.note_surveyed(done)
            done, size = [], 0
    work.note_surveyed(done)
    work.settle(_settled(work))


def _survey(work: Work, number: int, file: SourceFile) -> Surveyed:
    try:
        stamp = growing.stamp_of(Path(file.path).stat())
        content = Content(file.path, packed=file.packed)
    except OSError as error:
        refused = Entry(0, number, 1, Reason.UNREADABLE.value, error.strerror or "")
        return Surveyed(0, UNREADABLE, 0, 0, file.stamp, [], [refused], [])
    with content:
        if file.kind is FileKind.OLDER_DOCUMENT:
            return _survey_document(number, file, content, stamp)
        return _Lines(work, number, file, content).read(stamp)


def _survey_document(number: int, file: SourceFile, content: Content, stamp: tuple[int, ...]) -> Surveyed:
    """Read a document whole: one object, or an array of them."""
    told: list[Told] = []
    others: list[Entry] = []
    try:
        data = whole(content)
        for line, item in enumerate(items_of(data), start=1):
            try:
                found = read_stored(item)
            except LineRejected as rejected:
                others.append(Entry(0, number, line, rejected.reason, rejected.detail))
                continue
            if isinstance(found, SessionNote):
                told.append(Told(0, Place(file.name, line, 0), found))
            else:
                others.append(Entry(0, number, line, "", ""))
    except LineRejected as rejected:
        others.append(Entry(0, number, 1, rejected.reason, rejected.detail))
    return Surveyed(content.offset, content.digest(), 1, len(others), stamp, told, others, [])


class _Lines:
    """The survey of one file of lines."""

    def __init__(self, work: Work, number: int, file: SourceFile, content: Content) -> None:
        self._work = work
        self._number = number
        self._file = file
        self._content = content
        self._rank = reading_group(file)
        self._told: list[Told] = []
        self._inactive: list[str] = []
        self._lines = 0
        self._entries = 0

    def read(self, stamp: tuple[int, ...]) -> Surveyed:
        """Return what the file holds."""
        others = []
        look = self._look_older if self._file.kind is FileKind.OLDER_LINES else self._look_other
        for stretch in self._content.stretches():
            if stretch.skipped:
                self._lines += 1
                self._entries += 1
                continue
            offset = stretch.offset
            for raw in stretch.data.split(b"\n"):
                if raw and not raw.isspace():
                    look(raw, offset)
                self._lines += 1
                offset += len(raw) + 1
            self._lines -= stretch.data.endswith(b"\n")
            self._content.passed(stretch.data)
            if len(self._told) >= TOLD_HELD_MAX:
                self._work.note_told(self._number, self._told)
                self._told.clear()
        if self._content.torn:
            reason = Reason.UNREADABLE.value
            others.append(Entry(0, self._number, self._lines + 1, reason, self._content.torn))
        content = self._content
        return Surveyed(
            content.offset, content.digest(), self._lines, self._entries, stamp, self._told, others, self._inactive
        )

    def _look_older(self, raw: bytes, offset: int) -> None:
        """Take what a line says of a session; everything else is the parse's."""
        if _CALL not in raw:
            try:
                found = read_object(object_of(raw))
            except LineRejected:
                found = None
            if isinstance(found, SessionNote):
                self._told.append(Told(self._rank, Place(self._file.name, self._lines + 1, offset), found))
                return
        self._entries += 1

    def _look_other(self, raw: bytes, offset: int) -> None:
        """Take which imports of an export were taken back: their events do not count."""
        self._entries += 1
        if self._file.kind is FileKind.EXPORT and _BATCH in raw[:_BATCH_WITHIN]:
            try:
                found = object_of(raw)
            except LineRejected:
                return
            fields = found.get("fields")
            if found.get("deleted") or (isinstance(fields, dict) and fields.get("active") is False):
                self._inactive.append(str(found.get("id")))


def _settled(work: Work) -> Iterator[tuple[str, int | None, int | None, str | None]]:
    for session, told in work.all_told():
        note = merged([one.note for one in told])
        yield session, note.start_us, note.end_us, note.user
