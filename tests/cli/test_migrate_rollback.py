"""`metricsd migrate rollback`: as people and programs use it, from a dry run to taking the rollback back."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metricsd.cli.app import run_command
from metricsd.config import Paths
from metricsd.errors import AlreadyRunning, UsageError
from metricsd.migration import proving, state
from metricsd.migration.proving import RunProof
from metricsd.migration.rollback import choice_of
from tests.cli.test_migrate import FEW_FAULTS, SIX, metricsd, summary_of
from tests.migration.sources import call, write_lines

DAY_US = 86_400_000_000


@pytest.fixture(autouse=True)
def few_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "RunProof", partial(RunProof, faults=FEW_FAULTS))


def migrated(capsys: pytest.CaptureFixture[str], source: Path) -> str:
    _, lines = metricsd(capsys, "run", str(source), "--json", "--accept-rejects")
    return str(summary_of(lines)["migration_id"])


def counted(capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    """Return what `status` counts."""
    run_command(["status", "--json"])
    found = json.loads(capsys.readouterr().out)["store"]
    return {name: found[name] for name in ("events", "sessions")}


def rolled(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, lines = metricsd(capsys, "rollback", *arguments, "--json")
    assert code == 0
    return dict(json.loads(lines[-1]))


def test_all_of_it_goes_and_comes_back(home: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run counts and changes nothing; the result names how to take it back; running it again brings it back."""
    run = migrated(capsys, SIX)
    full = counted(capsys)
    assert full["events"] == 66
    stood = state.find(home, run).read().state
    tried = rolled(capsys, run, "--dry-run")
    assert (tried["events"], tried["rollback_id"], tried["dry_run"]) == (66, None, True)
    assert counted(capsys) == full
    done = rolled(capsys, run, "--full")
    assert (done["ok"], done["events"], done["kept_count"]) == (True, 66, 0)
    assert done["rest"]["before"] == done["rest"]["after"]
    assert counted(capsys) == {"events": 0, "sessions": 0}
    _, lines = metricsd(capsys, "list", "--json")
    assert json.loads("".join(lines))[0]["state"] == "rolled_back"
    run_command(["session", "list", "--json"])
    assert json.loads(capsys.readouterr().out) == []
    for command in (["verify", run], ["run", "--resume", run]):
        with pytest.raises(UsageError, match="is rolled back"):
            run_command(["migrate", *command])
    _, lines = metricsd(capsys, "status", run, "--json")
    (noted,) = json.loads(lines[0])["rollbacks"]
    assert (noted["id"], noted["events"], noted["undo"]) == (done["rollback_id"], 66, None)
    back = rolled(capsys, done["rollback_id"])
    _, lines = metricsd(capsys, "status", run)
    assert f"rolled back {done['rollback_id']}: took out 66 events" in "\n".join(lines)
    assert (back["events"], counted(capsys)) == (66, full)
    assert state.find(home, run).read().state is stood
    rolled(capsys, run)
    again = migrated(capsys, SIX)
    assert (counted(capsys), again != run) == (full, True)
    _, lines = metricsd(capsys, "verify", again, "--json")
    assert summary_of(lines)["confidence"]["accuracy_lb"] == 1
    with closing(sqlite3.connect(home.store)) as db:
        assert db.execute("SELECT count(*) FROM event").fetchone()[0] == 66


def test_a_choice_goes_by_tool_time_person_and_rule(
    home: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one kind any of several, of different kinds all."""
    lines: list[object] = [
        call(f"2026-01-0{1 + n % 5}T08:00:{n:02}Z", tool=("Bash", "Read", "Edit")[n % 3]) for n in range(30)
    ]
    write_lines(tmp_path / "s" / "tool-metrics.jsonl", lines)
    run = migrated(capsys, tmp_path / "s")
    assert rolled(capsys, run, "--where", "tool=Bash", "--where", "tool=Read", "--dry-run")["events"] == 20
    some = ["--where", "since=2026-01-02T00:00:00Z", "--where", "until=2026-01-03T00:00:00Z"]
    assert rolled(capsys, run, *some, "--dry-run")["events"] == 6
    assert rolled(capsys, run, *some, "--where", "tool=Edit")["events"] == 2
    assert rolled(capsys, run, "--where", "user=nobody")["events"] == 0
    assert rolled(capsys, run, "--from-checkpoint", "2")["events"] == 0
    assert rolled(capsys, run, "--from-checkpoint", "1")["events"] == 28
    assert counted(capsys)["events"] == 0


def test_a_rule_takes_back_what_it_found_something_about(
    home: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A migration remembers which entries each rule was about."""
    lines: list[object] = [call(f"2026-01-01T08:00:{n:02}Z") for n in range(10)]
    write_lines(
        tmp_path / "s" / "tool-metrics.jsonl", [*lines, call("2026-01-01T08:01:00Z", tool="T", execution_time_ms=10**9)]
    )
    run = migrated(capsys, tmp_path / "s")
    with closing(sqlite3.connect(home.store)) as db:
        rules = {rule: len(ids) // 16 for rule, ids in db.execute("SELECT rule, ids FROM import_mark")}
    assert rules
    for rule, count in rules.items():
        assert rolled(capsys, run, "--where", f"rule={rule}", "--dry-run")["events"] == count


def test_what_cannot_be_is_a_usage_error(home: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    """Each says what is wrong and what to write; nothing is changed."""
    with pytest.raises(UsageError, match="no store yet"):
        run_command(["migrate", "rollback", "m1"])
    run = migrated(capsys, SIX)
    for arguments, message in (
        (["m-none"], "no migration"),
        ([f"{run}~1"], "no rollback"),
        ([run, "--where", "colour=red"], "session, user, tool, rule, since or until"),
        ([run, "--where", "since=yesterday"], "write a day"),
        ([run, "--full", "--where", "tool=Bash"], "leave --from-checkpoint"),
    ):
        with pytest.raises(UsageError, match=message):
            run_command(["migrate", "rollback", *arguments])
    assert counted(capsys)["events"] == 66
    done = rolled(capsys, run)
    with pytest.raises(UsageError, match="taken back whole"):
        run_command(["migrate", "rollback", done["rollback_id"], "--where", "tool=Bash"])


def test_nobody_loads_and_takes_back_at_once(home: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    """A rollback holds the run's lock, as a migration does."""
    run = migrated(capsys, SIX)
    with state.find(home, run).locked(), pytest.raises(AlreadyRunning):
        run_command(["migrate", "rollback", run])
    assert counted(capsys)["events"] == 66


def test_people_read_what_changed_and_how_to_take_it_back(home: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    """The text names the counts, what was kept and why, and the command that undoes it."""
    run = migrated(capsys, SIX)
    run_command(["session", "list", "--json"])
    one = json.loads(capsys.readouterr().out)[0]["id"]
    run_command(["session", "edit", one, "--set", "score=1", "--set", "description=mine"])
    capsys.readouterr()
    code, lines = metricsd(capsys, "rollback", run)
    text = "\n".join(lines)
    assert code == 0 and "66 events" in text and "--overwrite-changed" in text and one in text
    assert f"metricsd migrate rollback {run}~1" in text


def test_a_day_is_a_whole_local_day() -> None:
    """`until` a day includes it; a time is that moment."""
    one = choice_of(["since=2026-01-02", "until=2026-01-02"])
    assert one.until_us - one.since_us == DAY_US
    assert choice_of(["until=2026-01-02T00:00:00Z"]).until_us == 1_767_312_000_000_000
    assert choice_of(["tool=a", "tool=b=c", "session=x/y"]).tools == ("a", "b=c")
