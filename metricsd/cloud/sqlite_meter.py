"""The sums of requests and bytes of a minute on SQLite: a file of its own beside the tenants' files.

It is written without waiting for the disk, because it matters for a minute and a process that ends takes nothing of
it along. A file that a power loss has damaged is made anew. Several processes write it; each write is one statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metricsd.cloud.access import Tenant
from metricsd.cloud.rate import Amount, kept_minutes
from metricsd.cloud.sqlite_file import as_refusal

FILE_NAME = "rate.db"
BUSY_TIMEOUT_S = 2.0
_SETUP = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = OFF",
    "CREATE TABLE IF NOT EXISTS spent (tenant TEXT NOT NULL, minute INTEGER NOT NULL, requests INTEGER NOT NULL,"
    " size INTEGER NOT NULL, PRIMARY KEY (tenant, minute)) STRICT, WITHOUT ROWID",
)
_SPEND = """
INSERT INTO spent VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (tenant, minute) DO UPDATE SET requests = requests + ?3, size = size + ?4
RETURNING requests - ?3, size - ?4
"""
_SUFFIXES = ("", "-wal", "-shm")


class SqliteMeter:
    """`Meter` over one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rate")
        self._db: sqlite3.Connection | None = None
        self._minute = 0

    async def spend(self, tenant: Tenant, minute: int, amount: Amount) -> Amount:
        """Add to the sums and return what they were before; raise 503 when the file is locked for too long."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._spend, tenant.id, minute, amount)
        except sqlite3.OperationalError as error:
            raise as_refusal(error) from error

    async def stored_bytes(self, tenant: Tenant) -> int:
        """Return the size of a tenant's file and of what waits to go into it."""
        return await asyncio.to_thread(_size_of, self._folder / f"t_{tenant.id}.db")

    def close(self) -> None:
        """Finish what was begun and close the file."""
        self._pool.shutdown(wait=True)
        if self._db is not None:
            self._db.close()

    def _spend(self, tenant: str, minute: int, amount: Amount) -> Amount:
        try:
            return self._spend_once(tenant, minute, amount)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            # Not a database any more: a minute's sums are all there was to lose.
            self._begin_anew()
            return self._spend_once(tenant, minute, amount)

    def _spend_once(self, tenant: str, minute: int, amount: Amount) -> Amount:
        db = self._db
        if db is None:
            db = self._db = self._connect()
        if minute != self._minute:
            self._minute = minute
            db.execute("DELETE FROM spent WHERE minute NOT BETWEEN ? AND ?", kept_minutes(minute))
        return Amount(*db.execute(_SPEND, (tenant, minute, *amount)).fetchall()[0])

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            for statement in _SETUP:
                db.execute(statement)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _begin_anew(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        for suffix in _SUFFIXES:
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _size_of(path: Path) -> int:
    size = 0
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            size += path.with_name(path.name + suffix).stat().st_size
    return size
