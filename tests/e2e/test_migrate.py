"""A migration beside a running daemon that follows the same folder, while captures come in: everything once."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from bench.older_source import make_source
from metricsd import spool
from metricsd.cli.app import run_command
from metricsd.migration import proving
from metricsd.migration.proving import RunProof
from tests.e2e.support import ROOT, Home, homes, wait_for
from tests.migration.sources import RECORDED

CALLS = 3000
CAPTURES = 40


def test_daemon_and_migration_bring_one_folder_in_at_once(tmp_path: Path) -> None:
    """Both read it from the start, into one store, and hooks capture meanwhile: each call is there once, and so are sums."""
    source = tmp_path / "source"
    truth = make_source(source, CALLS, bad_percent=0.5)
    with homes(tmp_path, "home") as (home,):
        environment = home.environment | {"METRICSD_TAIL_OLDER_HOOKS": str(source)}
        home.environment = environment
        home.start_ready()
        migration = subprocess.Popen(
            [sys.executable, "-m", "tests.migration.driver", str(home.folder), str(source), "m1", "50"],
            env={**environment, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for number in range(CAPTURES):
            payload = {
                "session_id": "s",
                "tool_name": "Read",
                "tool_use_id": f"toolu_{number:08x}",
                "duration_ms": number,
            }
            spool.append("PostToolUse", payload, app="claude-code", spool=home.spool)
        out, _ = migration.communicate(timeout=100)
        assert migration.returncode == 0
        wanted = truth.events + CAPTURES
        sql = "SELECT count(*) FROM event AS e JOIN event_type AS t ON t.id = e.type WHERE t.kind = 'tool_used'"
        wait_for(lambda: home.query(sql) == [(wanted,)], "every call once")
        summary = json.loads(out.splitlines()[-1])
        home.run("sync", "--dry-run")
        assert home.query(sql) == [(wanted,)]
        events = home.query("SELECT count(*), count(DISTINCT id) FROM event")[0]
        assert events[0] == events[1] == wanted + 2 * truth.sessions
        assert home.query("SELECT sum(n) FROM day_total") == [(events[0],)]
        assert home.query("SELECT sum(tool_calls) FROM session_counters") == [(wanted,)]
        assert home.status()["store"]["healthy"] is True
        home.end()
    calls = summary["tool_events"]
    assert calls["loaded"] + calls["merged"] + calls["skipped"] == truth.events + truth.announced
    assert calls["source"] == truth.events + truth.announced + truth.bad_lines


@pytest.mark.parametrize("target", ["both", "cloud"])
def test_history_reaches_a_cloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Over the store and its sync, or straight: the cloud has every event once; with `cloud` the store keeps none."""
    with homes(tmp_path, "home") as (home,):
        home.environment |= {"METRICSD_TAIL_OLDER_HOOKS": ""}
        home.start_ready("--with-cloud")
        wait_for(lambda: home.status()["sync"]["last_success"], "the daemon is a device of its cloud")
        monkeypatch.setenv("METRICSD_HOME", str(home.folder))
        monkeypatch.setattr(proving, "RunProof", partial(RunProof, faults=10))
        run_command(["migrate", "run", str(RECORDED / "six"), "--to", target, "--json"])
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (summary["tool_events"]["loaded"], summary["sessions"]["loaded"]) == (54, 6)
        home.run("sync")
        assert in_cloud(home) == 66
        assert home.query("SELECT count(*) FROM event") == [(66 if target == "both" else 0,)]
        home.end()


def in_cloud(home: Home) -> int:
    """Return how many events the home's own cloud holds, read from its files."""
    total = 0
    for path in (home.folder / "state" / "cloud").rglob("*.db"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'event'").fetchone():
                total += db.execute("SELECT count(*) FROM event").fetchone()[0]
    return total
