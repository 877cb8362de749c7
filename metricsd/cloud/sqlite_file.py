"""One SQLite file of the cloud: how it is opened, its interned texts, and a thread for small transactions.

Files are private, in WAL mode, and synchronous=FULL: a commit that returned is on the disk. Several processes may work
on the same file; writers then take turns through BEGIN IMMEDIATE. A queue that is full refuses with 503.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

from metricsd.cloud.problems import busy
from metricsd.schema import Step, apply_steps, pending_steps, version_of

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
"""How long a transaction waits for another process before the request is refused with 503."""
WAITING_MAX = 64
TERMS_MAX = 20_000
WAL_BYTES_KEPT = 16 * 1024 * 1024
_SETTINGS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -4096",
    f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}",
)


def open_file(path: Path, steps: list[Step]) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Return a writing and a reading connection, after bringing the schema up to date; an older file is copied first.

    The folder's lock file keeps two processes from running the same schema step at once. Files are private (0600).
    """
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    writing = _connect(path)
    try:
        with _schema_lock(path.parent):
            writing.execute("PRAGMA journal_mode = WAL")
            _upgrade(writing, path, steps)
        reading = _connect(path)
        reading.execute("PRAGMA query_only = ON")
    except BaseException:
        writing.close()
        raise
    return writing, reading


def _upgrade(db: sqlite3.Connection, path: Path, steps: list[Step]) -> None:
    pending = pending_steps(db, steps, what=str(path))
    version = version_of(db)
    if pending and version:
        _copy_before_upgrade(db, path, version)
    for _ in apply_steps(db, pending):
        continue


def _copy_before_upgrade(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Copy the file beside itself under its schema version, in the place of copies of older versions."""
    target = path.with_name(f"{path.name}.schema-{version:04d}")
    draft = target.with_name(f"{target.name}.draft")
    draft.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(draft),))
    draft.chmod(0o600)
    draft.replace(target)
    for older in path.parent.glob(f"{path.name}.schema-[0-9]*"):
        if older != target:
            older.unlink(missing_ok=True)


@contextmanager
def _schema_lock(folder: Path) -> Iterator[None]:
    lock = os.open(folder / "schema.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    for setting in _SETTINGS:
        connection.execute(setting)
    return connection


class TermIds(dict[str | None, int | None]):
    """Numbers of texts, learned when asked for; None stays None. A hit costs one look into a dictionary."""

    def __init__(self, learn: Callable[[str], int]) -> None:
        super().__init__({None: None})
        self._learn = learn

    def __missing__(self, text: str | None) -> int | None:
        # None is always there, so what is missing is a text.
        number = self[text] = self._learn(str(text))
        return number

    def forget_all(self) -> None:
        """Forget every text; each is looked up again."""
        self.clear()
        self[None] = None


class Terms:
    """Interned texts of one connection. Rows of `term` are never changed, so remembering them is always right."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.ids = TermIds(self._learn)
        self._texts: dict[int, str] = {}
        self._new: list[str] = []

    def id_of(self, text: str) -> int:
        """Return the number of a text, giving it one inside the open transaction if it has none."""
        return cast(int, self.ids[text])

    def find(self, text: str) -> int | None:
        """Return the number of a text, None if it has none. For readers."""
        row = self._db.execute("SELECT id FROM term WHERE text = ?", (text,)).fetchone()
        return None if row is None else int(row[0])

    def text_of(self, number: int) -> str:
        """Return the text of a number."""
        text = self._texts.get(number)
        if text is None:
            if len(self._texts) >= TERMS_MAX:
                self._texts.clear()
            text = str(self._db.execute("SELECT text FROM term WHERE id = ?", (number,)).fetchone()[0])
            self._texts[number] = text
        return text

    def forget_new(self, keep: int = 0) -> None:
        """Forget what was learned after the first `keep` texts of this transaction: it was rolled back."""
        for text in self._new[keep:]:
            self.ids.pop(text, None)
            # The number may be given to another text now.
            self._texts.clear()
        del self._new[keep:]

    def learned(self) -> int:
        """Return how many texts this transaction added so far."""
        return len(self._new)

    def settle(self) -> None:
        """Take what was learned as lasting: the transaction was committed."""
        self._new.clear()
        if len(self.ids) > TERMS_MAX:
            self.ids.forget_all()

    def _learn(self, text: str) -> int:
        number = self.find(text)
        if number is None:
            number = int(self._db.execute("INSERT INTO term (text) VALUES (?) RETURNING id", (text,)).fetchone()[0])
            self._new.append(text)
        return number


class FileThread:
    """One thread with one connection that runs small transactions, one after the other."""

    def __init__(self, db: sqlite3.Connection, *, name: str, begin: str = "BEGIN") -> None:
        self.terms = Terms(db)
        self._db = db
        self._begin = begin
        self._waiting = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of `work`, done in one transaction; raise 503 when too many wait."""
        if self._waiting >= WAITING_MAX:
            raise busy("too many requests wait for the database", "waiting_requests_max")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._transact, work)
        except sqlite3.OperationalError as error:
            raise as_refusal(error) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        self._db.close()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._db.execute(self._begin)
        try:
            result = work(self._db)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return result


def as_refusal(error: BaseException) -> BaseException:
    """Return 503 for what passes by itself (locked, full, unreadable); anything else is a fault of ours."""
    if isinstance(error, sqlite3.OperationalError):
        return busy(f"the database cannot be used now ({type(error).__name__})")
    return error
