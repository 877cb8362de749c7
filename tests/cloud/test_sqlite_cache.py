"""What is remembered of a file is never older than the file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd.cloud import sqlite_cache
from metricsd.cloud.sqlite_cache import FileCache


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    db = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (a)")
    db.execute("INSERT INTO t VALUES (1)")
    yield tmp_path / "x.db", db
    db.close()


class Reading:
    """Loads the one value and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, db: sqlite3.Connection) -> int:
        self.times += 1
        return int(db.execute("SELECT a FROM t").fetchone()[0])


def test_a_commit_by_anybody_counts_at_once(file: tuple[Path, sqlite3.Connection]) -> None:
    """By another connection, by another process; and without one nothing is read again."""
    path, db = file
    cache, read = FileCache[int](path), Reading()
    assert [cache.get(b"k", read) for _ in range(5)] == [1] * 5
    assert read.times == 1
    db.execute("UPDATE t SET a = 2")
    assert cache.get(b"k", read) == 2
    change = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('UPDATE t SET a = 3'); db.commit()"
    subprocess.run([sys.executable, "-c", change, str(path)], check=True)
    assert cache.get(b"k", read) == 3
    cache.close()


def test_a_value_read_while_somebody_commits_is_not_kept(file: tuple[Path, sqlite3.Connection]) -> None:
    """A commit between looking at the version and reading makes the next look read again."""
    path, db = file
    cache, read = FileCache[int](path), Reading()

    def slow(inner: sqlite3.Connection) -> int:
        value = read(inner)
        db.execute("UPDATE t SET a = 7")
        return value

    assert cache.get(b"k", slow) == 1
    assert cache.get(b"k", read) == 7
    cache.close()


def test_it_is_bounded(file: tuple[Path, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many different keys as one likes never hold more than the limit."""
    monkeypatch.setattr(sqlite_cache, "ENTRIES_MAX", 10)
    cache, read = FileCache[int](file[0]), Reading()
    for number in range(100):
        cache.get(str(number).encode(), read)
        assert len(cache._values) <= 10
    cache.close()
