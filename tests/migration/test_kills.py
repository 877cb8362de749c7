"""kill -9 at every edge of a stage and at moments that chance picks: the run that goes on ends as an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.older_source import Truth, make_source
from metricsd.crash import MIGRATION_POINTS, VARIABLE
from tests.e2e.support import ROOT

CALLS = 1500
PART_ROWS = 100
KILLS = 6
KILLS_SOAK = 200
ENDS_BEFORE_COMPARING = ("migrate_compared", "migrate_reported")
"""Edges behind the load; the driver ends before them, and tests/cli/test_migrate.py crosses them."""


class Source:
    """A folder of older hooks, and how an undisturbed run of it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truth: Truth = make_source(folder / "source", CALLS, bad_percent=1.0)
        began = time.monotonic()
        self.summary = run(folder / "calm", folder / "source")
        self.seconds = time.monotonic() - began
        self.facts = facts(folder / "calm")


def command(home: Path, source: Path) -> list[str]:
    return [sys.executable, "-m", "tests.migration.driver", str(home), str(source), "m1", str(PART_ROWS)]


def environment(crash: str = "") -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: crash}


def run(home: Path, source: Path) -> dict[str, Any]:
    """Run, or go on, to the end; return the summary."""
    done = subprocess.run(
        command(home, source), env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def crash(home: Path, source: Path, point: str) -> int:
    """Run until the process kills itself at a point; return its exit code."""
    done = subprocess.run(
        command(home, source), env=environment(point), cwd=ROOT, capture_output=True, timeout=120, check=False
    )
    return done.returncode


def facts(home: Path) -> dict[str, Any]:
    """Return what the store, its quarantine and the ledger of a run hold."""
    found: dict[str, Any] = {}
    with closing(sqlite3.connect(home / "state" / "store.db")) as db:
        for table in ("event", "session_counters", "import_part", "import_before", "legacy_extra", "quarantine"):
            found[table] = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        found["records"] = db.execute("SELECT type, count(*) FROM record GROUP BY type ORDER BY type").fetchall()
        found["totals"] = db.execute("SELECT sum(n), sum(failed), sum(duration_ms) FROM day_total").fetchall()
        found["by_tool"] = db.execute(
            "SELECT t.text, count(*), sum(e.outcome != 0), sum(e.duration_ms) FROM event AS e JOIN term AS t ON t.id = e.tool"
            " GROUP BY e.tool ORDER BY t.text"
        ).fetchall()
    found["ledger"] = (home / "state" / "migrations" / "m1" / "ledger.jsonl").read_bytes()
    return found


def assert_undisturbed(home: Path, summary: dict[str, Any], source: Source) -> None:
    """Equal in digest, counts, rows, records, quarantine and ledger."""
    for name in ("digest", "sessions", "tool_events", "other_events", "quarantined", "quality_score", "ok"):
        assert summary[name] == source.summary[name], name
    assert facts(home) == source.facts


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("kills"))


def test_an_undisturbed_run_finds_the_truth(source: Source) -> None:
    """Events, sessions, bad lines, and each tool's calls, failures and milliseconds, exactly."""
    truth, summary = source.truth, source.summary
    assert (summary["sessions"]["loaded"], summary["sessions"]["rejected"]) == (truth.sessions, 0)
    calls = summary["tool_events"]
    assert (calls["loaded"], calls["rejected"], calls["merged"]) == (truth.events, truth.bad_lines, truth.announced)
    assert calls["source"] == truth.events + truth.bad_lines + truth.announced
    assert truth.bad_lines > 0 and summary["quarantined"] == truth.bad_lines
    wanted = [(name, tool.count, tool.failures, tool.total_ms) for name, tool in sorted(truth.by_tool.items())]
    assert source.facts["by_tool"] == wanted
    assert source.facts["import_part"] > 15


@pytest.mark.parametrize("point", [point for point in MIGRATION_POINTS if point not in ENDS_BEFORE_COMPARING])
def test_a_crash_at_an_edge_is_made_good(tmp_path: Path, source: Source, point: str) -> None:
    """Crash there, early and late, then go on: nothing is lost and nothing is there twice."""
    home = tmp_path / "home"
    assert crash(home, source.folder / "source", point) == -signal.SIGKILL
    once = ("migrate_surveyed", "migrate_loaded")
    if point not in once:
        assert crash(home, source.folder / "source", f"{point}:7") == -signal.SIGKILL
    assert_undisturbed(home, run(home, source.folder / "source"), source)


def test_kills_at_any_moment_are_made_good(tmp_path: Path, source: Source) -> None:
    """Killed again and again at moments that chance picks, one run comes to the end of an undisturbed one."""
    kill_at_random(tmp_path, source, KILLS, random.Random(3))


@pytest.mark.soak
def test_two_hundred_kills_are_made_good(tmp_path: Path, source: Source) -> None:
    """The same, many times over, each from the start as well."""
    kill_at_random(tmp_path, source, KILLS_SOAK, random.Random(time.time_ns()))


def kill_at_random(folder: Path, source: Source, kills: int, chance: random.Random) -> None:
    killed = number = 0
    while killed < kills:
        home = folder / str(number)
        number += 1
        # Up to three kills of one run, then it may end.
        for _ in range(3):
            process = subprocess.Popen(
                command(home, source.folder / "source"), env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL
            )
            try:
                process.wait(timeout=chance.uniform(0.1, 1.0) * source.seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
            assert process.wait(timeout=60) in (0, -signal.SIGKILL)
        summary = run(home, source.folder / "source")
        assert_undisturbed(home, summary, source)


def test_going_on_begins_within_two_seconds(tmp_path: Path, source: Source) -> None:
    """What a resumed run does before its next part is stored is quick: most of it is a start of Python."""
    home = tmp_path / "home"
    assert crash(home, source.folder / "source", "migrate_part_stored:12") == -signal.SIGKILL
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tests.migration.driver"], env=environment(), cwd=ROOT, check=True)
    floor_s = time.monotonic() - began
    began = time.monotonic()
    assert crash(home, source.folder / "source", "migrate_part_stored") == -signal.SIGKILL
    # Beside a start of Python with the same modules, so that a busy machine does not decide.
    assert time.monotonic() - began < 2.0 + 3 * floor_s
