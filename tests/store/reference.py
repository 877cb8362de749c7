"""The workload that storage tests run again and again: everything that the daemon does to its disk, in small."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from metricsd.config import Config, Paths, find_paths, load_config
from metricsd.errors import StoreUnavailable
from metricsd.intake import Intake, open_intake
from metricsd.store.backup import backup
from metricsd.store.quarantine import sweep
from metricsd.store.retention import fold
from metricsd.writer import Writer
from tests.fakes import START_US, FakeClock

CAPTURES = 4
LINES = 6
ROUNDS = 3
OLD_NUMBER = 9000
"""The number of an event that is old enough for retention to fold it."""
DAY_S = 86_400


def paths_of(home: Path) -> Paths:
    return find_paths({"METRICSD_HOME": str(home)})


def encode(number: int, **parts: object) -> bytes:
    """Return a complete line that carries `number`."""
    payload = {"session_id": "s", "tool_name": "Bash", "duration_ms": number, "pad": "x" * 300}
    return (
        json.dumps({"v": 1, "app": "claude-code", "event": "PostToolUse", **parts, "payload": payload}).encode() + b"\n"
    )


def write_round(home: Path, number: int) -> list[int]:
    """Write one round's captures (one of them bad) and shared lines; return the numbers of the good ones."""
    spool, first = paths_of(home).spool, number * 100
    for n in range(first, first + CAPTURES):
        path = spool / "new" / f"PostToolUse-{n}-1-0.jsonl"
        path.write_bytes(encode(n, s=START_US // 1_000_000 + n))
        os.utime(path, ns=(0, (START_US + n * 1_000_000) * 1000))
    (spool / "new" / f"Stop-{first}-1-0.jsonl").write_bytes(b"no json %d\n" % first)
    lines = range(first + 50, first + 50 + LINES)
    with (spool / "shared.jsonl").open("ab") as file:
        file.writelines(encode(n, ts=START_US // 1000 + n) for n in lines)
    return [*range(first, first + CAPTURES), *lines]


def make_home(home: Path) -> None:
    """Make a home with a store that has one old event, closed cleanly."""
    paths = paths_of(home)
    (paths.spool / "new").mkdir(parents=True, mode=0o700)
    (paths.spool / "shared.jsonl").write_bytes(encode(OLD_NUMBER, ts=START_US // 1000 - 400 * DAY_S * 1000))
    intake = open_intake(paths, settings(paths), FakeClock())
    intake.take_all()
    intake.store.close()


def settings(paths: Paths) -> Config:
    return load_config(paths, {}, system_file=Path("/nonexistent"))


def run(home: Path, *, rounds: int = ROUNDS, on_written: Callable[[list[int]], None] = lambda _: None) -> list[int]:
    """Run the workload as the daemon would, going on after StoreUnavailable; return the numbers that were written."""
    paths, clock = paths_of(home), FakeClock()
    intake: Intake | None = None
    written: list[int] = []
    for number in range(rounds):
        numbers = write_round(home, number)
        written += numbers
        on_written(numbers)
        with contextlib.suppress(StoreUnavailable):
            intake = intake or open_intake(paths, settings(paths), clock)
            Writer(paths.store).call(intake.take_all)
        if intake is not None:
            _chores(intake, paths, number)
    if intake is not None:
        intake.store.close()
    return written


def _chores(intake: Intake, paths: Paths, number: int) -> None:
    store, writer = intake.store, Writer(paths.store)
    with contextlib.suppress(StoreUnavailable):
        if number == 0:
            writer.call(partial(backup, store, paths.backups, keep=1))
        if number == 1:
            writer.call(partial(sweep, store, older_than_us=30 * DAY_S * 1_000_000, bytes_max=1000))
            writer.call(partial(fold, store, days=100, synced_through=None))
        if number != 1:
            writer.call(store.checkpoint)
    writer.close()


def numbers_in(home: Path) -> Counter[int]:
    """Return the numbers of the stored events, without the old one. SQL of its own; the file is only read."""
    db = sqlite3.connect(paths_of(home).store)
    found = Counter(row[0] for row in db.execute("SELECT duration_ms FROM event"))
    db.close()
    found.pop(OLD_NUMBER, None)
    return found


def assert_sound(path: Path) -> None:
    """The database is not damaged."""
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    db.close()


def assert_exactly_once(home: Path, wanted: list[int], *, old: bool = True, rejected: int = ROUNDS) -> None:
    """Read what the spool has left; then everything is there once, and the totals count the same."""
    paths = paths_of(home)
    assert_sound(paths.store)
    for copy in paths.backups.glob("*.db"):
        assert_sound(copy)
    intake = open_intake(paths, settings(paths), FakeClock())
    intake.take_all()
    db = intake.store.db
    # A home that was laid out anew is read from the start, and what retention has folded is refused there as too old.
    (total,) = db.execute("SELECT sum(n) FROM rollup").fetchone()
    (quarantined,) = db.execute("SELECT count(*) FROM quarantine WHERE reason != 'too_old'").fetchone()
    intake.store.close()
    found = numbers_in(home)
    assert found == Counter(wanted), (Counter(wanted) - found, found - Counter(wanted))
    assert (total, quarantined) == (len(wanted) + old, rejected), (total, quarantined, len(wanted) + old, rejected)
    assert list((paths.spool / "new").iterdir()) == []
    assert list(paths.backups.glob("*.partial*")) == []
