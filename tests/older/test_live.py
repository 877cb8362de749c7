"""The daemon as a process, while hooks of both generations write."""

from __future__ import annotations

import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.homes import Home, until
from tests.older.support import TOKEN
from tests.older.writer import OlderHooks

SESSIONS, CALLS = 4, 25


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home whose person has the two default folders; nothing is configured."""
    made = Home(tmp_path / "metricsd", HOME=str(tmp_path / "person"))
    yield made
    made.close()


def stored(home: Home) -> Counter[tuple[str, str]]:
    """Return how often each (session, tool) was called, as the store has it."""
    sql = """
    SELECT s.session_id, t.text FROM event AS e JOIN session AS s ON s.id = e.session JOIN term AS t ON t.id = e.tool
    """
    with closing(sqlite3.connect(f"file:{home.paths.store}?mode=ro", uri=True)) as db:
        return Counter(db.execute(sql).fetchall())


@pytest.mark.parametrize("generation", [1, 2])
def test_files_that_grow_are_counted_once_through_kills(home: Home, tmp_path: Path, generation: int) -> None:
    """The folders appear after the daemon, which is killed twice while the hooks write; no call is lost or doubled,
    each belongs to its session, and no token and no word of content is anywhere in the home."""
    hooks = OlderHooks(tmp_path / "person", generation)
    daemon = home.start_daemon()
    for _ in range(2):
        hooks.run(1, CALLS)
        until(lambda: home.events() >= len(hooks.calls) // 2)
        hooks.start()
        for number in range(CALLS):
            hooks.call()
            if number == CALLS // 2:
                daemon.send_signal(signal.SIGKILL)
                daemon.wait(20)
        hooks.end()
        daemon = home.start_daemon()
    expected = Counter(hooks.calls)
    assert sum(expected.values()) == SESSIONS * CALLS
    until(lambda: home.events() >= SESSIONS * CALLS + 2 * SESSIONS)
    assert stored(home) == expected
    assert home.events() == SESSIONS * CALLS + 2 * SESSIONS
    held = b"".join(path.read_bytes() for path in home.root.rglob("*") if path.is_file())
    for word in (TOKEN, "private words", "Dev One", "Authorization"):
        assert word.encode() not in held
    report = home.ok("report", "sessions", "--json")
    assert report.count('"ended_at": "') == SESSIONS


def test_both_generations_side_by_side(home: Home, tmp_path: Path) -> None:
    """Somebody who changed from one to the other has both folders; the first one's calls name their session."""
    home.start_daemon()
    first = OlderHooks(tmp_path / "person", 1)
    second = OlderHooks(tmp_path / "person", 2, datetime(2026, 2, 2, 8, tzinfo=UTC))
    for _ in range(2):
        first.run(1, 5)
        second.run(1, 5)
    expected = Counter(first.calls + second.calls)
    until(lambda: home.events() >= 20 + 8)
    assert stored(home) == expected
