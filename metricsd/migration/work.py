"""A run's own database: the files of the source, and what each of them says of sessions. Thrown away with the run.

It lets one session be merged from all its files while memory stays flat, and holds no content: names of files, times,
and the small figures of sessions. The survey fills it, file by file; from then on it is only read. A run that is cut off
while it surveys goes on behind the last file that is done.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from metricsd.decode.older_hooks import SessionNote
from metricsd.migration.model import FileKind, Place, SourceFile
from metricsd.older.sessions import OVERLAPPING_MAX, Span, owner_among, person_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value ANY) STRICT;
CREATE TABLE IF NOT EXISTS found (grp INTEGER, name TEXT PRIMARY KEY, path BLOB, kind TEXT, packed INTEGER, why TEXT, stamp TEXT) STRICT;
CREATE TABLE IF NOT EXISTS file (
    number INTEGER PRIMARY KEY,         -- the order of reading
    name TEXT NOT NULL, path BLOB NOT NULL, kind TEXT NOT NULL, packed INTEGER NOT NULL, why TEXT NOT NULL, stamp TEXT NOT NULL,
    size INTEGER NOT NULL DEFAULT 0, digest TEXT NOT NULL DEFAULT '', lines INTEGER NOT NULL DEFAULT 0,
    entries INTEGER NOT NULL DEFAULT 0  -- lines that the survey leaves to the parse
) STRICT;
-- What one line or document says of a session.
CREATE TABLE IF NOT EXISTS told (
    session TEXT NOT NULL, rank INTEGER NOT NULL, file INTEGER NOT NULL, line INTEGER NOT NULL, offset INTEGER NOT NULL, note BLOB NOT NULL,
    PRIMARY KEY (session, rank, file, line)
) STRICT, WITHOUT ROWID;
-- The merged sessions, in the order in which they began.
CREATE TABLE IF NOT EXISTS session (
    number INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, start INTEGER, "end" INTEGER, user TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS session_start ON session (start);
-- Entries of documents that are no session: single calls of the older API, and what cannot be taken.
CREATE TABLE IF NOT EXISTS entry (
    number INTEGER PRIMARY KEY, file INTEGER NOT NULL, line INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS inactive (batch TEXT PRIMARY KEY) STRICT;
-- Events that were sent to the cloud, by which part, and whether it had them before.
CREATE TABLE IF NOT EXISTS sent (id BLOB PRIMARY KEY, part INTEGER NOT NULL, known INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
_FILES = "SELECT name, path, kind, packed, why, stamp, size, digest, lines FROM file"
_TOLD = """
SELECT s.number, s.session, f.name, t.line, t.offset, t.note FROM session AS s JOIN told AS t ON t.session = s.session
JOIN file AS f ON f.number = t.file WHERE s.number > ? ORDER BY s.number, t.rank, t.file, t.line
"""
_ALL_TOLD = """
SELECT 0, t.session, f.name, t.line, t.offset, t.note FROM told AS t JOIN file AS f ON f.number = t.file
ORDER BY t.session, t.rank, t.file, t.line
"""
_BEFORE = 'SELECT start, session, "end", user FROM session WHERE start <= ? ORDER BY start DESC, session DESC LIMIT ?'
_NEXT = "SELECT min(start) FROM session WHERE start > ?"
_NEVER = (1 << 63) - 1
_IDS_PER_QUERY = 500

# JSON, because what older tools wrote may hold whole numbers of any length.
_encode = msgspec.json.Encoder().encode
_decode_note = msgspec.json.Decoder(SessionNote).decode


class Told(NamedTuple):
    """One line or document that says something of a session. The lower rank has the word, then who comes first."""

    rank: int
    place: Place
    note: SessionNote


class Entry(NamedTuple):
    """An entry of a document that is no session. `reason` is empty for one that can be taken."""

    number: int
    file: int
    line: int
    reason: str
    detail: str


class Surveyed(NamedTuple):
    """What the survey found in one file."""

    size: int
    digest: str
    lines: int
    entries: int
    stamp: tuple[int, ...]
    told: Sequence[Told]
    others: Sequence[Entry]
    inactive: Sequence[str]


class Work:
    """The run's database. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        # What a power loss takes of it is surveyed again: the store's checkpoint alone must last.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("PRAGMA cache_size = -4096")
        self._db.executescript(_SCHEMA)
        self._window: tuple[int, int, list[Span]] = (0, -1, [])
        self._one_person: bool | None = None

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def fact(self, key: str) -> str:
        """Return a noted fact; empty for none."""
        row = self._db.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        return "" if row is None else str(row[0])

    def note_fact(self, key: str, value: str) -> None:
        """Note a fact of the run."""
        self._db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, value))

    @property
    def is_surveyed(self) -> bool:
        """Whether the survey is done."""
        return self.fact("surveyed") == "yes"

    def list_files(self, files: Iterable[tuple[int, SourceFile]]) -> None:
        """Note every file of the source with the group that it is read in. What a cut-off listing left is dropped."""
        with self._transaction():
            for table in ("found", "file", "told", "session", "entry", "inactive"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of this module
            for group, file in files:
                self._db.execute(
                    "INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        group,
                        file.name,
                        os.fsencode(file.path),
                        file.kind.value,
                        file.packed,
                        file.why,
                        _stamp_text(file.stamp),
                    ),
                )
            self._db.execute(
                "INSERT INTO file (name, path, kind, packed, why, stamp)"
                " SELECT name, path, kind, packed, why, stamp FROM found ORDER BY grp, name"
            )
            self._db.execute("DELETE FROM found")
            self.note_fact("listed", "yes")

    def unsurveyed(self) -> Iterator[tuple[int, SourceFile]]:
        """Yield the files that are read and not surveyed yet, in order."""
        sql = "SELECT min(number) FROM file WHERE number > ? AND digest = '' AND kind != ?"
        last = 0
        while number := self._db.execute(sql, (last, FileKind.IGNORED.value)).fetchone()[0]:
            last = number
            yield number, self.file(number)

    def note_surveyed(self, done: Sequence[tuple[int, Surveyed]]) -> None:
        """Note what the survey found in some files, in one transaction."""
        with self._transaction():
            for number, found in done:
                self._db.execute(
                    "UPDATE file SET size = ?, digest = ?, lines = ?, entries = ?, stamp = ? WHERE number = ?",
                    (found.size, found.digest, found.lines, found.entries, _stamp_text(found.stamp), number),
                )
                self._put_told(number, found.told)
                self._db.executemany(
                    "INSERT INTO entry (file, line, reason, detail) VALUES (?, ?, ?, ?)",
                    [(number, one.line, one.reason, one.detail) for one in found.others],
                )
                self._db.executemany("INSERT OR IGNORE INTO inactive VALUES (?)", [(name,) for name in found.inactive])

    def note_told(self, number: int, told: Sequence[Told]) -> None:
        """Note what a file says of sessions before it is read to its end: a second time changes nothing."""
        with self._transaction():
            self._put_told(number, told)

    def settle(self, merged: Iterable[tuple[str, int | None, int | None, str | None]]) -> None:
        """Note the merged sessions (id, start, end, user) in the order in which they began, and end the survey."""
        with self._transaction():
            self._db.execute("CREATE TEMP TABLE unordered (session TEXT, start INTEGER, ended INTEGER, user TEXT)")
            self._db.executemany("INSERT INTO unordered VALUES (?, ?, ?, ?)", merged)
            self._db.execute("DELETE FROM session")
            self._db.execute(
                'INSERT INTO session (session, start, "end", user)'
                " SELECT session, start, ended, user FROM unordered ORDER BY coalesce(start, ended), session"
            )
            self._db.execute("DROP TABLE unordered")
            self.note_fact("surveyed", "yes")

    def all_told(self) -> Iterator[tuple[str, list[Told]]]:
        """Yield each session with everything that is said of it, before the sessions are settled."""
        for _, session, told in _grouped(self._db.execute(_ALL_TOLD), by=1):
            yield session, told

    def sessions(self, after: int) -> Iterator[tuple[int, str, list[Told]]]:
        """Yield the merged sessions behind number `after` with everything that is said of them."""
        return _grouped(self._db.execute(_TOLD, (after,)), by=0)

    def span(self, session: str) -> tuple[int | None, int | None] | None:
        """Return when a session ran; None for one that the source never tells of."""
        row = self._db.execute('SELECT start, "end" FROM session WHERE session = ?', (session,)).fetchone()
        return None if row is None else (row[0], row[1])

    def entries(self, after: int) -> Iterator[Entry]:
        """Yield the entries of documents that are no session, behind number `after`."""
        for row in self._db.execute("SELECT * FROM entry WHERE number > ? ORDER BY number", (after,)):
            yield Entry(*row)

    def file(self, number: int) -> SourceFile:
        """Return a file by its number."""
        return _file(self._db.execute(f"{_FILES} WHERE number = ?", (number,)).fetchone())

    def files(self) -> Iterator[SourceFile]:
        """Yield every file, in order."""
        for row in self._db.execute(f"{_FILES} ORDER BY number"):
            yield _file(row)

    def numbered_lines(self, first: int) -> list[int]:
        """Return the numbers of the files from `first` on that hold lines for the parse, in order."""
        sql = "SELECT number FROM file WHERE number >= ? AND entries > 0 AND kind IN (?, ?, ?) ORDER BY number"
        kinds = (FileKind.OLDER_LINES.value, FileKind.TRANSCRIPT.value, FileKind.EXPORT.value)
        return [row[0] for row in self._db.execute(sql, (first, *kinds))]

    def totals(self) -> dict[str, int]:
        """Return how many files are read and ignored, their bytes and lines, and how many sessions there are.

        `line_bytes` are those of the files that the parse reads line by line.
        """
        read, size, lines, line_bytes = self._db.execute(
            "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(lines), 0),"
            " coalesce(sum(CASE WHEN entries > 0 AND kind != ? THEN size END), 0) FROM file WHERE kind != ?",
            (FileKind.OLDER_DOCUMENT.value, FileKind.IGNORED.value),
        ).fetchone()
        ignored = self._db.execute("SELECT count(*) FROM file WHERE kind = ?", (FileKind.IGNORED.value,)).fetchone()[0]
        sessions = self._db.execute("SELECT count(*) FROM session").fetchone()[0]
        return {
            "files": read,
            "ignored": ignored,
            "bytes": size,
            "lines": lines,
            "sessions": sessions,
            "line_bytes": line_bytes,
        }

    def is_inactive(self, batch: str) -> bool:
        """Return whether an export says that this import was taken back."""
        return self._db.execute("SELECT 1 FROM inactive WHERE batch = ?", (batch,)).fetchone() is not None

    def owner(self, user: str | None, at_us: int) -> str | None:
        """Return the session in which this person made a call at this time, by the rule of older/sessions.py.

        Calls follow each other, so the sessions around the last one are kept at hand.
        """
        first, behind, spans = self._window
        if not first <= at_us < behind:
            rows = self._db.execute(_BEFORE, (at_us, OVERLAPPING_MAX)).fetchall()
            spans = [Span(*row) for row in reversed(rows)]
            first = spans[-1].start_us if spans else 0
            behind = self._db.execute(_NEXT, (at_us,)).fetchone()[0] or _NEVER
            self._window = (first, behind, spans)
        if self._one_person is None:
            users = self._db.execute("SELECT DISTINCT user FROM session WHERE start IS NOT NULL")
            self._one_person = len({person_of(user) for (user,) in users} - {None}) <= 1
        return owner_among(spans, user, at_us, is_one_person=self._one_person)

    def _put_told(self, number: int, told: Sequence[Told]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?, ?, ?)",
            [(one.note.session, one.rank, number, one.place.line, one.place.offset, _encode(one.note)) for one in told],
        )

    def sent(self, ids: Sequence[bytes]) -> dict[bytes, tuple[int, bool]]:
        """Return {id: (part, whether the cloud had it before)} of the events that are sent, or about to be."""
        found: dict[bytes, tuple[int, bool]] = {}
        for start in range(0, len(ids), _IDS_PER_QUERY):
            some = ids[start : start + _IDS_PER_QUERY]
            marks = ", ".join("?" * len(some))
            sql = f"SELECT id, part, known FROM sent WHERE id IN ({marks})"  # noqa: S608 - question marks only
            found.update({row[0]: (row[1], bool(row[2])) for row in self._db.execute(sql, some)})
        return found

    def note_sending(self, part: int, known: dict[bytes, bool]) -> None:
        """Note what a part is about to send, and what of it the cloud had: an answer may be lost."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO sent VALUES (?, ?, ?)", [(key, part, had) for key, had in known.items()]
            )

    def begin_dry_run(self) -> None:
        """Forget what an earlier dry run saw."""
        self._db.execute("CREATE TABLE IF NOT EXISTS seen (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID")
        self._db.execute("DELETE FROM seen")

    def first_seen(self, keys: Sequence[bytes]) -> list[bool]:
        """Return for each key whether this dry run meets it for the first time."""
        with self._transaction():
            return [self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1 for key in keys]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise


class Files:
    """Every file of the source, read from the run's database each time that they are gone through."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __iter__(self) -> Iterator[SourceFile]:
        return self._work.files()

    def __contains__(self, file: object) -> bool:
        return any(one == file for one in self)

    def __len__(self) -> int:
        totals = self._work.totals()
        return totals["files"] + totals["ignored"]


def _grouped(rows: Iterable[tuple[Any, ...]], *, by: int) -> Iterator[tuple[int, str, list[Told]]]:
    """Yield the rows of each session together."""
    for _, group in groupby(rows, key=lambda row: row[by]):
        some = list(group)
        told = [Told(0, Place(file, line, offset), _decode_note(note)) for _, _, file, line, offset, note in some]
        yield some[0][0], some[0][1], told


def _file(row: tuple[Any, ...]) -> SourceFile:
    name, path, kind, packed, why, stamp, size, digest, lines = row
    return SourceFile(
        name=name, path=os.fsdecode(path), kind=FileKind(kind), packed=bool(packed), why=why,
        stamp=tuple(map(int, stamp.split())), size=size, digest=digest, lines=lines,
    )  # fmt: skip


def _stamp_text(stamp: tuple[int, ...]) -> str:
    return " ".join(map(str, stamp))
