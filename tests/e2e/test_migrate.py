"""A migration beside a running daemon that follows the same folder, while captures come in: everything once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.older_source import make_source
from metricsd import spool
from tests.e2e.support import ROOT, homes, wait_for

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
