"""A home whose store is looked after in this process, and an outside look at what it holds."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from metricsd.config import Paths, find_paths, load_config
from metricsd.errors import StoreUnavailable
from metricsd.storekeeper import StoreKeeper
from tests.fakes import START_US, FakeClock
from tests.store.reference import encode

FILES = ("", "-wal", "-shm")


class Kept:
    """One home and its keeper. Events carry their number as their duration."""

    def __init__(self, root: Path, **settings: str) -> None:
        self.paths: Paths = find_paths({"METRICSD_HOME": str(root)})
        self.clock = FakeClock()
        self._config = load_config(self.paths, settings, system_file=Path("/nonexistent"))
        self._next = 0
        self.keeper = self._new_keeper()

    def _new_keeper(self) -> StoreKeeper:
        keeper = StoreKeeper(self.paths, self._config, self.clock)
        keeper.open()
        return keeper

    def restart(self) -> StoreKeeper:
        """Close and open as another process would."""
        self.keeper.close()
        self.keeper = self._new_keeper()
        return self.keeper

    def capture(self, count: int) -> list[int]:
        """Lay captures into the spool; return their numbers."""
        numbers = list(range(self._next, self._next + count))
        self._next += count
        for n in numbers:
            path = self.paths.spool / "new" / f"PostToolUse-{n}-1-0.jsonl"
            path.write_bytes(encode(n, s=START_US // 1_000_000 + n))
            os.utime(path, ns=(0, (START_US + n * 1_000_000) * 1000))
        return numbers

    def share(self, count: int) -> list[int]:
        """Append lines to a shared file, which stays; return their numbers."""
        numbers = list(range(self._next, self._next + count))
        self._next += count
        with (self.paths.spool / "shared.jsonl").open("ab") as file:
            file.writelines(encode(n, ts=START_US // 1000 + n) for n in numbers)
        return numbers

    def take(self) -> None:
        """Take in everything that waits; with the store in trouble it goes on waiting."""
        with contextlib.suppress(StoreUnavailable):
            while self.keeper.tick().more:
                continue

    def stored(self, count: int) -> list[int]:
        """Capture, take in, and return the numbers."""
        numbers = self.capture(count)
        self.take()
        return numbers

    def numbers(self) -> Counter[int]:
        """Return the numbers of the stored events, with SQL of its own."""
        with contextlib.closing(sqlite3.connect(f"file:{self.paths.store}?mode=ro", uri=True)) as db:
            return Counter(row[0] for row in db.execute("SELECT duration_ms FROM event"))

    def assert_sound(self) -> None:
        """The database is sound, and totals and counters say what its rows say."""
        with contextlib.closing(sqlite3.connect(f"file:{self.paths.store}?mode=ro", uri=True)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows, live, totals, counted = db.execute(
                "SELECT (SELECT count(*) FROM event), (SELECT value FROM state WHERE key = 'live_events'),"
                " (SELECT sum(n) FROM rollup), (SELECT sum(events) FROM session_counters)"
            ).fetchone()
        assert (live or 0, totals or 0, counted or 0) == (rows, rows, rows)

    def set(self, **limits: int) -> None:
        """Change limits of the store under the keeper."""
        self._config = self._config._replace(store=self._config.store._replace(**limits))
        self.keeper._config = self._config

    def remove(self, *suffixes: str) -> None:
        """Delete files of the store."""
        for suffix in suffixes:
            self.paths.store.with_name(self.paths.store.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def kept_home(root: Path, **settings: str) -> Iterator[Kept]:
    """Give a home with an open keeper, and close it."""
    kept = Kept(root, **settings)
    try:
        yield kept
    finally:
        kept.keeper.close()


def pages_of(path: Path) -> int:
    """Return how many pages of 4,096 bytes a closed database has."""
    return path.stat().st_size // 4096


def ruin(path: Path, page: int, *, how: bytes = b"\xa5") -> None:
    """Overwrite one page, counted from 0."""
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write((how * 4096)[:4096])
