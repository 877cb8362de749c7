"""What the second reader notes of records: sessions of all their entries, added-up figures, and calls without a session.

A small database of its own in a private folder, because a source may tell of more sessions than memory holds. It is
dropped with the folder; nothing of it is anybody's truth but this reading's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from metricsd.migration.second.sessions import Note, merge

OPEN_US_MAX = 24 * 3600 * 1_000_000
"""How long a session without an end is taken to run."""
OVERLAPPING_MAX = 64
"""Sessions before a call that are looked at."""
_HALF = 1 << 63
"""SQLite's whole numbers have a sign, identities have none."""
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -4096;
CREATE TABLE note (session TEXT, rank INTEGER, file INTEGER, line INTEGER, body TEXT,
    PRIMARY KEY (session, rank, file, line)) WITHOUT ROWID;
CREATE TABLE session (session TEXT PRIMARY KEY, start INTEGER, ended INTEGER, user TEXT, place INTEGER, refused TEXT,
    body TEXT) WITHOUT ROWID;
CREATE INDEX session_start ON session (start, session);
CREATE TABLE figure (kind TEXT, id TEXT, place INTEGER, body TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE transcribed (identity INTEGER PRIMARY KEY, session TEXT);
CREATE TABLE unowned (at INTEGER, user TEXT, body TEXT);
"""


_NOBODY = {"", "unknown"}


class Kept(NamedTuple):
    """A merged session. `refused` names the rule that keeps it out; `entries` is how many told of it."""

    note: Note
    place: int
    refused: str


class Books:
    """The database. Belongs to one process at a time."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        if create:
            self._db.executescript(_SCHEMA)
        self._held: list[tuple[str, int, int, int, str]] = []

    def begin(self) -> None:
        """Make what follows one transaction: it need not last."""
        self._db.execute("BEGIN")

    def end(self) -> None:
        """End the transaction."""
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def note(self, note: Note, rank: int, file: int, line: int) -> None:
        """Keep what an entry says of a session."""
        row = (note.session, rank, file, line, json.dumps(note))
        self._db.execute("INSERT OR REPLACE INTO note VALUES (?, ?, ?, ?, ?)", row)

    def figure(self, kind: str, record_id: str, place: int, values: Mapping[str, Any]) -> None:
        """Keep the fields of a record; of several entries the first one counts."""
        self._db.execute(
            "INSERT OR IGNORE INTO figure VALUES (?, ?, ?, ?)", (kind, record_id, place, json.dumps(values))
        )

    def transcribed(self, identity: int, session: str) -> None:
        """Keep whose an event of a transcript is: hooks may have captured that session."""
        self._db.execute("INSERT OR IGNORE INTO transcribed VALUES (?, ?)", (identity - _HALF, session))

    def session_of(self, identity: int) -> str | None:
        """Return whose an event of a transcript is; None for one of another source."""
        row = self._db.execute("SELECT session FROM transcribed WHERE identity = ?", (identity - _HALF,)).fetchone()
        return None if row is None else str(row[0])

    def unowned(self, at: int, user: str | None, body: object) -> None:
        """Keep a call that was written without its session, until all sessions are known."""
        self._db.execute("INSERT INTO unowned VALUES (?, ?, ?)", (at, user, json.dumps(body)))

    def merged(self) -> Iterator[tuple[Note, int, int]]:
        """Yield each session of all its entries, where the first of them stands, and how many there are."""
        rows = self._db.execute("SELECT session, file, line, body FROM note ORDER BY session, rank, file, line")
        for _, group in groupby(rows, key=lambda row: row[0]):
            some = list(group)
            yield merge(_note(row[3]) for row in some), some[0][1] << 32 | some[0][2], len(some)

    def settle(self, kept: Kept) -> None:
        """Keep a merged session."""
        note = kept.note
        row = (note.session, note.start, note.end, note.user, kept.place, kept.refused, json.dumps(note))
        self._db.execute("INSERT INTO session VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def sessions(self) -> Iterator[Kept]:
        """Yield the merged sessions."""
        for place, refused, body in self._db.execute("SELECT place, refused, body FROM session ORDER BY session"):
            yield Kept(_note(body), place, refused)

    def figures(self) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
        """Yield type, id, place and fields of the records beside the sessions of the older hooks."""
        for kind, record_id, place, body in self._db.execute(
            "SELECT kind, id, place, body FROM figure ORDER BY kind, id"
        ):
            yield kind, record_id, place, json.loads(body)

    def owned(self) -> Iterator[tuple[Any, str | None]]:
        """Yield each call that was written without its session, and whose session's it was, None if nobody can tell.

        It is the session of the same person that ran at that time, of several the one that began last. Where only
        one person's sessions are known, everything is that person's.
        """
        people = self._db.execute("SELECT DISTINCT user FROM session WHERE start IS NOT NULL AND user IS NOT NULL")
        alone = len({_account(user) for (user,) in people} - _NOBODY) <= 1
        starts = self._db.execute(
            "SELECT start, session, ended, user FROM session WHERE start IS NOT NULL ORDER BY start, session"
        )
        ahead, before = starts.fetchone(), list[tuple[int, str, int | None, str | None]]()
        for at, user, body in self._db.execute("SELECT at, user, body FROM unowned ORDER BY at"):
            while ahead is not None and ahead[0] <= at:
                before.append(ahead)
                del before[:-OVERLAPPING_MAX]
                ahead = starts.fetchone()
            yield json.loads(body), _owner(before, at, user, alone=alone)


def _owner(
    before: list[tuple[int, str, int | None, str | None]], at: int, user: str | None, *, alone: bool
) -> str | None:
    anybody: str | None = None
    for start, session, end, whose in reversed(before):
        if at > (start + OPEN_US_MAX if end is None else end):
            continue
        if whose is not None and user is not None and _account(whose) == _account(user) not in _NOBODY:
            return session
        anybody = anybody or session
    return anybody if alone else None


def _account(user: str) -> str:
    return user.split("@")[0].casefold()


def _note(body: str) -> Note:
    return Note(*json.loads(body))
