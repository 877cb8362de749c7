"""Opens the store and gives out transactions: the only place that talks about pragmas, locks and disk errors.

WAL with `synchronous=NORMAL` while the source still holds the data; a transaction that lets something outside be
forgotten (a capture deleted, an acknowledgement sent) asks for `full=True`. One `Store` is used by one thread at a
time. SQLite's errors leave this module as StoreUnavailable (try again later) or StoreCorrupt. A `Store` outlives its
database: it can be shut and opened again, so that nobody who holds it needs to know that the file was replaced.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from metricsd.clock import Clock, SystemClock
from metricsd.errors import StoreCorrupt, StoreError, StoreUnavailable
from metricsd.schema import Step, apply_steps, load_steps, pending_steps, version_of
from metricsd.store.calendar import Days, system_zone
from metricsd.store.terms import Terms

SQLITE_MIN = (3, 37, 0)
"""STRICT tables came with 3.37 (November 2021)."""
BUSY_TIMEOUT_S = 5.0
BUSY_TIMEOUT_MS = int(BUSY_TIMEOUT_S * 1000)
CACHE_KIB = 8 * 1024
WAL_BYTES_MAX = 64 * 1024 * 1024
_STEPS_PACKAGE = "metricsd.store.schema"
_CORRUPT_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

Place = tuple[int, int]
"""Device and inode of a file."""


class Store:
    """A store, open or shut. Make one with `Store.open`; a shut one raises on any use what it was shut with."""

    def __init__(self, path: Path, db: sqlite3.Connection | None, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.days = Days(system_zone())
        self.place: Place | None = None
        """Which file is open: another one under the same name is not this store."""
        self._wal_place: Place | None = None
        self._live: tuple[sqlite3.Connection, Terms] | None = None
        self._shut_by: StoreError = StoreUnavailable(f"{path} is not open")
        self._full = False
        if db is not None:
            self._use(db)

    @classmethod
    def open(cls, path: Path, *, clock: Clock | None = None, backups: Path | None = None) -> Store:
        """Open or create the store at `path` (0600), running schema steps after a copy into `backups`.

        Raises SchemaTooNew, StoreCorrupt, StoreUnavailable.
        """
        store = cls(path, None, clock or SystemClock())
        store.reopen(backups=backups)
        return store

    def reopen(self, *, backups: Path | None = None) -> None:
        """Open what lies at the path now; whoever holds this object goes on with it. Raises as `open` does."""
        if sqlite3.sqlite_version_info < SQLITE_MIN:
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: metricsd needs 3.37 or newer")
        self.close()
        with translated(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            try:
                _configure(db)
                _upgrade(db, self.path, backups)
            except BaseException:
                db.close()
                raise
        self._use(db)

    def shut(self, why: StoreError) -> None:
        """Close the database; until `reopen` every use raises `why`."""
        self.close()
        self._shut_by = why

    @property
    def is_open(self) -> bool:
        """Whether the store can be used at all."""
        return self._live is not None

    @property
    def db(self) -> sqlite3.Connection:
        """The open database."""
        if self._live is None:
            raise self._shut_by
        return self._live[0]

    @property
    def terms(self) -> Terms:
        """The interned strings of the open database."""
        if self._live is None:
            raise self._shut_by
        return self._live[1]

    def _use(self, db: sqlite3.Connection) -> None:
        self._live = (db, Terms(db))
        self._full = False
        self.place, self._wal_place = place_of(self.path), place_of(wal_of(self.path))

    @contextlib.contextmanager
    def transaction(self, *, full: bool = False) -> Iterator[sqlite3.Connection]:
        """Run a block as one write transaction; with `full`, it is on disk when the block has ended.

        Any exception rolls back and forgets what was cached of the transaction's rows.
        """
        with translated(self.path):
            if full != self._full:
                self.db.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
                self._full = full
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                self.terms.forget()
                if self.db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self.db.execute("ROLLBACK")
                raise

    def checkpoint(self, *, wait_ms: int = BUSY_TIMEOUT_MS) -> None:
        """Move the WAL into the database and truncate it, so that it does not grow while nobody reads.

        Readers that hold it for longer than `wait_ms` keep it as it is.
        """
        with translated(self.path):
            self.db.execute(f"PRAGMA busy_timeout = {wait_ms}")
            try:
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self.db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    def is_in_place(self) -> bool:
        """Return whether the file that is open, and its WAL, still have their names."""
        return place_of(self.path) == self.place and place_of(wal_of(self.path)) == self._wal_place

    def limit(self, bytes_max: int) -> None:
        """Let SQLite itself refuse what would make the file larger; one that is larger already may stay so."""
        with translated(self.path):
            page = self.db.execute("PRAGMA page_size").fetchone()[0]
            self.db.execute(f"PRAGMA max_page_count = {max(bytes_max // page, 1)}")

    def sizes(self) -> tuple[int, int]:
        """Return how many bytes of the file are in use, and how many are free inside it."""
        with translated(self.path):
            page, pages, spare = (
                self.db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
        return (pages - spare) * page, spare * page

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        live, self._live = self._live, None
        if live is not None:
            live[0].close()


def place_of(path: Path) -> Place | None:
    """Return which file has this name now; None when none has."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def wal_of(path: Path) -> Path:
    """Return where SQLite keeps what was committed to the database at `path` and is not moved into it yet."""
    return path.with_name(path.name + "-wal")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's and the file system's errors inside the block into ours, naming the file and what to do."""
    try:
        with sqlite_translated(path):
            yield
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be used now ({error.strerror}): {_advice(0)}") from error


@contextlib.contextmanager
def sqlite_translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors inside the block into ours. Reads outside a transaction fail too, on a bad disk."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _CORRUPT_CODES or (code == 0 and "malformed" in str(error)):
            raise StoreCorrupt(
                f"{path} is damaged ({error}): start the daemon with `metricsd up`, it repairs the store"
            ) from error
        if isinstance(error, sqlite3.OperationalError):
            raise StoreUnavailable(f"{path} cannot be used now ({error}): {_advice(code)}") from error
        raise


def _advice(code: int) -> str:
    if code == sqlite3.SQLITE_FULL:
        return "free some disk space; captures wait in the spool"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another program holds it; captures wait in the spool"
    return "check the disk and the file's permissions; captures wait in the spool"


def _configure(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute("PRAGMA trusted_schema = OFF")


def _upgrade(db: sqlite3.Connection, path: Path, backups: Path | None) -> None:
    pending: list[Step] = pending_steps(db, load_steps(_STEPS_PACKAGE), what=str(path))
    if not pending:
        return
    old = version_of(db)
    if old and backups is not None:
        copy_before_upgrade(db, backups, old)
    for _ in apply_steps(db, pending):
        continue


def copy_before_upgrade(db: sqlite3.Connection, backups: Path, version: int) -> Path:
    """Copy the database into `backups` under its schema version, replacing an older copy of that version."""
    backups.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = backups / f"before-schema-{version + 1:04d}.db"
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(partial),))
    partial.chmod(0o600)
    partial.replace(target)
    return target
