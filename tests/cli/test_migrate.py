"""`metricsd migrate`: the commands as people and programs use them, from a plan to a second run."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metricsd.cli import migrate_progress
from metricsd.cli.app import run_command
from metricsd.config import Paths
from metricsd.crash import VARIABLE
from metricsd.errors import UsageError
from metricsd.migration import proving
from metricsd.migration.proving import RunProof
from tests.e2e.support import ROOT
from tests.migration.sources import RECORDED, call, write_lines

FEW_FAULTS = 20
SIX = RECORDED / "six"
SUMMARY = {
    "migration_id", "ok", "sessions", "tool_events", "quarantined", "quality_score", "confidence", "duration_s",
    "records_per_s", "peak_rss_mb", "report_dir",
}  # fmt: skip
TALLY = {"source", "loaded", "merged", "rejected", "skipped"}
CONFIDENCE = {"reconciled", "coverage", "accuracy_lb", "sensitivity_lb", "score", "verdict"}


def metricsd(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """Run a command line in this process; return its exit code and the lines of stdout."""
    code = run_command(["migrate", *arguments])
    return code, capsys.readouterr().out.splitlines()


def summary_of(lines: list[str]) -> dict[str, Any]:
    return dict(json.loads(lines[-1]))


def bad_source(folder: Path, good: int, bad: int) -> Path:
    lines: list[object] = [call(f"2026-01-05T08:{n // 60:02}:{n % 60:02}Z", tool=f"T{n % 7}") for n in range(good)]
    write_lines(folder / "tool-metrics.jsonl", [*lines, *(f"bad {n}" for n in range(bad))])
    return folder


@pytest.fixture
def few_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put few faults into the check of the check: it proves less, and a run costs a second in place of seven."""
    monkeypatch.setattr(proving, "RunProof", partial(RunProof, faults=FEW_FAULTS))


def test_a_plan_explains_every_file_and_changes_nothing(
    home: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kinds, sizes, sessions; what is not read has a reason; without a source the older hooks' folders are looked for."""
    code, lines = metricsd(capsys, "plan", str(SIX), "--json")
    found = json.loads(lines[0])
    assert (code, found["sessions"], found["ignored"] > 0) == (0, 6, True)
    assert all(file["why"] for file in found["read"] if file["kind"] == "ignored")
    code, lines = metricsd(capsys, "plan", str(SIX))
    assert code == 0 and any("6 sessions" in line for line in lines)
    assert not home.state_dir.exists()


def test_the_folders_of_both_generations_are_found(
    home: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the home folder, under their own names; where there are none, somebody has to name a source."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no folders of the older hooks"):
        run_command(["migrate", "plan"])
    for generation, name in (("agent", ".agent-os"), ("mesh", ".ai-mesh")):
        write_lines(tmp_path / name / "metrics" / "tool-metrics.jsonl", [call("2026-01-05T08:00:00Z", tool=generation)])
    code, lines = metricsd(capsys, "run", "--dry-run", "--json")
    assert (code, summary_of(lines)["tool_events"]["loaded"]) == (0, 2)
    code, lines = metricsd(capsys, "list", "--json")
    assert [row["dry_run"] for row in json.loads("".join(lines))] == [True]


@pytest.mark.usefixtures("few_faults")
def test_the_name_of_the_source_is_in_no_record(
    home: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records sync, and a folder may be named after somebody."""
    folder = tmp_path / "ann-oakley"
    write_lines(folder / "tool-metrics.jsonl", [call("2026-01-05T08:00:00Z", tool="Read")])
    _, lines = metricsd(capsys, "run", str(folder), "--json")
    assert summary_of(lines)["tool_events"]["loaded"] == 1
    with closing(sqlite3.connect(home.store)) as db:
        records = db.execute("SELECT fields FROM record WHERE type = 'import_batch'").fetchall()
    assert records and not any("ann-oakley" in fields for (fields,) in records)


def test_a_run_ends_with_its_summary_and_a_second_one_adds_nothing(
    home: Paths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line of stdout is the summary as it is documented; what came before is progress; twice is once."""
    code, lines = metricsd(capsys, "run", str(SIX), "--json")
    summary = summary_of(lines)
    assert code == 0 and summary["ok"] is True
    assert summary.keys() >= SUMMARY and summary["sessions"].keys() == TALLY == summary["tool_events"].keys()
    assert summary["confidence"].keys() == CONFIDENCE
    assert (summary["sessions"]["loaded"], summary["tool_events"]["loaded"]) == (6, 54)
    assert summary["confidence"]["verdict"] == "pass" and summary["confidence"]["coverage"] == 1
    assert all("stage" in json.loads(line) for line in lines[:-1])
    assert (Path(summary["report_dir"]) / "report.json").exists()
    monkeypatch.setattr(proving, "RunProof", partial(RunProof, faults=FEW_FAULTS))
    code, lines = metricsd(capsys, "run", str(SIX), "--json")
    again = summary_of(lines)
    assert (again["tool_events"]["loaded"], again["tool_events"]["skipped"]) == (0, 60)
    assert (again["confidence"]["reconciled"], again["confidence"]["accuracy_lb"]) == (True, 1)
    with closing(sqlite3.connect(home.store)) as db:
        assert db.execute("SELECT count(*) FROM event").fetchone()[0] == 66
    code, lines = metricsd(capsys, "list", "--json")
    rows = json.loads("".join(lines))
    assert [(row["loaded"], row["verdict"]) for row in rows] == [(0, "fail"), (60, "pass")]
    code, lines = metricsd(capsys, "status", summary["migration_id"], "--json")
    assert code == 0 and json.loads(lines[0])["tool_events"]["loaded"] == 54
    code, lines = metricsd(capsys, "report", summary["migration_id"])
    assert code == 0 and lines[0].startswith("PASS") and lines[0].endswith("coverage 100 %")
    assert any("report.html" in line for line in lines)
    code, lines = metricsd(capsys, "report", summary["migration_id"], "--json")
    assert json.loads("".join(lines))["confidence"]["verdict"] == "pass"
    with pytest.raises(UsageError, match="is done"):
        run_command(["migrate", "run", "--resume", summary["migration_id"]])


@pytest.mark.usefixtures("few_faults")
def test_more_than_one_percent_waits_until_somebody_accepts(
    home: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing asks without a terminal: it pauses, says how to go on, and the acceptance is for this run."""
    source = bad_source(tmp_path / "source", 980, 20)
    code, lines = metricsd(capsys, "run", str(source), "--json")
    paused = summary_of(lines)
    assert (code, paused["ok"], paused["state"]) == (1, False, "paused")
    assert "--accept-rejects" in paused["reason"] and paused["confidence"]["verdict"] == "fail"
    code, lines = metricsd(capsys, "status", "--json")
    assert (code, json.loads(lines[0])["state"]) == (1, "paused")
    code, lines = metricsd(capsys, "report", paused["migration_id"])
    assert code == 1 and "bad_json" in "".join(lines) and any("tool-metrics.jsonl:98" in line for line in lines)
    code, lines = metricsd(capsys, "report", paused["migration_id"], "--rejects", "--json")
    assert [row["line"] for row in json.loads("".join(lines))] == list(range(981, 1001))
    code, lines = metricsd(capsys, "run", "--resume", paused["migration_id"], "--accept-rejects", "--json")
    summary = summary_of(lines)
    assert (summary["tool_events"]["rejected"], summary["quarantined"], summary["tool_events"]["loaded"]) == (
        20,
        20,
        980,
    )
    assert (summary["confidence"]["reconciled"], summary["confidence"]["accuracy_lb"]) == (True, 1)
    assert "faults put in on purpose" in summary["reason"] and ";" not in summary["reason"]


@pytest.mark.usefixtures("few_faults")
def test_verifying_sees_what_happened_to_the_target_since(home: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal while nothing happened; an event that somebody took out of the store is one missing row, and is named."""
    _, lines = metricsd(capsys, "run", str(SIX), "--json")
    run = summary_of(lines)["migration_id"]
    _, lines = metricsd(capsys, "verify", run, "--json")
    assert (summary_of(lines)["confidence"]["accuracy_lb"], summary_of(lines)["tool_events"]["loaded"]) == (1, 54)
    with closing(sqlite3.connect(home.store)) as db:
        db.execute("DELETE FROM event WHERE pos = (SELECT max(pos) FROM event)")
        db.commit()
    code, lines = metricsd(capsys, "verify", run, "--json")
    found = summary_of(lines)
    assert (code, found["ok"], found["confidence"]["verdict"]) == (1, False, "fail")
    assert found["confidence"]["accuracy_lb"] < 1 and "missing" in found["reason"]


@pytest.mark.usefixtures("few_faults")
def test_more_than_five_percent_stops_whatever_was_accepted(
    home: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a source is damaged or something else; what was loaded can be taken back."""
    source = bad_source(tmp_path / "source", 900, 100)
    code, lines = metricsd(capsys, "run", str(source), "--accept-rejects", "--json")
    stopped = summary_of(lines)
    assert (code, stopped["ok"], stopped["state"]) == (1, False, "failed")
    assert "more than 5 %" in stopped["reason"]


@pytest.mark.soak
@pytest.mark.parametrize("point", ["migrate_compared", "migrate_reported"])
def test_a_crash_behind_the_load_is_made_good(home: Paths, capsys: pytest.CaptureFixture[str], point: str) -> None:
    """Everything is stored by then: going on compares and reports, and loads nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "metricsd", "migrate", "run", str(SIX)],
        env={**os.environ, VARIABLE: point}, cwd=ROOT, capture_output=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    code, lines = metricsd(capsys, "list", "--json")
    (row,) = json.loads("".join(lines))
    assert row["state"] == "cut_off"
    code, lines = metricsd(capsys, "run", "--resume", row["id"], "--json")
    summary = summary_of(lines)
    assert (code, summary["ok"], summary["tool_events"]["loaded"], summary["sessions"]["loaded"]) == (0, True, 54, 6)


def test_wrong_options_are_usage_errors(home: Paths, tmp_path: Path) -> None:
    """Each says which option is wrong; no run is left behind."""
    people = tmp_path / "people.json"
    people.write_text('{"ann": "not an id"}')
    for options in (
        ["run", str(tmp_path / "nowhere")],
        ["run", str(SIX), "--users", "map"],
        ["run", str(SIX), "--users", "map", "--users-file", str(people)],
        ["run", str(SIX), "--users", "default"],
        ["run", str(SIX), "--resume", "m1"],
        ["run", "--resume", "m1"],
        ["run", str(SIX), "--dsn-from", "DSN"],
        ["status", "m1"],
        ["report", "m1"],
        ["verify", "m1"],
        ["status"],
    ):
        with pytest.raises(Exception) as refused:
            run_command(["migrate", *options])
        assert getattr(refused.value, "exit_code", 0) == 2, options


def test_a_bar_is_for_a_terminal_alone(home: Paths, tmp_path: Path) -> None:
    """On a pipe there is nothing but the result; on a terminal the bar goes to stderr and leaves stdout alone."""
    source = bad_source(tmp_path / "source", 2000, 0)
    command = [sys.executable, "-m", "metricsd", "migrate", "run", "--dry-run", str(source)]
    piped = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60, check=True)
    assert piped.stderr == b"" and b"2000 read: 2000 loaded" in piped.stdout
    ours, theirs = pty.openpty()
    shown = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=ROOT,
        timeout=60,
        check=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    bar = os.read(ours, 65536)
    os.close(ours)
    assert b"loading" in bar or b"looking" in bar
    assert b"2000 read: 2000 loaded" in shown.stdout


def test_a_rate_is_that_of_the_last_half_minute() -> None:
    """What was quick long ago says nothing about how long the rest takes."""
    rate = migrate_progress.Rate(0.0)
    assert rate.per_s(1.0, 1000) == 1000
    for second in range(2, 100):
        found = rate.per_s(float(second), 1000 + 10 * second)
    assert found == pytest.approx(10, rel=0.05)
