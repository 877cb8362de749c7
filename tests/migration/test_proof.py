"""What a run says of itself is true: on the recorded folders, on bad data, and after somebody changed the target."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from metricsd.migration.model import Tally
from metricsd.migration.sensitivity import sample
from metricsd.migration.sensitivity.measure import Bench, measure
from metricsd.store import records
from metricsd.store.connection import Store
from tests.migration.proven import prove
from tests.migration.rows_of import NOW_US, call, first, summary, write
from tests.migration.sources import bring, surveyed

RECORDED = {"first": (15, 1), "second": (15, 1), "six": (54, 6)}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_folder_arrives_whole(name: str, tmp_path: Path) -> None:
    """Every row of the real folders is equal on both sides, every entry has its fate, nothing is left over."""
    calls, sessions = RECORDED[name]
    found = prove(tmp_path / "home", bring(name, tmp_path))
    report = found.report
    assert (report.counts.tool_events.loaded, report.counts.sessions.loaded) == (calls, sessions)
    assert (report.rows.equal, report.rows.unfaithful, report.rows.ours) == (
        calls + 2 * sessions,
        0,
        calls + 2 * sessions,
    )
    assert (report.records.equal, report.records.unfaithful) == (sessions, 0)
    assert report.confidence.reconciled
    assert (report.confidence.coverage, report.confidence.accuracy_lb) == (1.0, 1.0)
    assert all(of["source"] == of["target"] for of in report.digests.values())
    assert [one.level for one in report.baseline] == ["ok"] * 11
    assert {one.level for one in report.likenesses} == {"ok"}
    assert len(report.reasons) == 1 and "faults put in on purpose" in report.reasons[0]


def test_enough_faults_make_a_pass(tmp_path: Path) -> None:
    """1,000 seeded faults, all found: the sensitivity that the summary prints, and the verdict."""
    found = prove(tmp_path / "home", bring("six", tmp_path), faults=1000)
    assert found.summary.ok
    confidence = found.summary.confidence
    assert (confidence.verdict, confidence.score) == ("pass", 99.54)
    assert found.report.sensitivity.seeded == 1000
    assert found.report.sensitivity.found >= 995
    assert [kind.seeded for kind in found.report.sensitivity.kinds] == [50] * 20


def test_bad_lines_reconcile_and_do_not_fail_the_run(tmp_path: Path) -> None:
    """Rejected entries are counted by both readers alike."""
    lines = [call(f"2026-11-22T18:59:{second:02d}Z") for second in range(5, 55)] * 2
    bad = [b"not json", b'{"event_type":"tool_execution"}', b"\x00\x00", b"[1]", b'{"a":NaN}', b'"\xff"']
    hard = [call("2019-01-01T00:00:00Z"), call("2027-01-01T00:00:00Z")]
    source = write(tmp_path / "source", [*lines * 3, *bad, *hard], [first(), summary()])
    report = prove(tmp_path / "home", source).report
    assert report.counts.tool_events == Tally(source=308, loaded=300, merged=0, rejected=8, skipped=0)
    assert report.confidence.reconciled
    assert report.rows.unfaithful == 0
    assert {one.name: one.count for one in report.rejects}["rule_time_too_early"] == 1


def test_a_folder_that_is_told_of_twice_reconciles(tmp_path: Path) -> None:
    """A copy of the same lines in another file merges; a line that tells otherwise of the same fact is counted."""
    lines = [call(f"2026-11-22T18:59:{second:02d}Z") for second in range(5, 25)]
    source = write(tmp_path / "source", lines, [first(), summary()])
    write(
        tmp_path / "source", [*lines[:10], call("2026-11-22T18:59:20Z", lines_added=9)], name="tool-metrics.old.jsonl"
    )
    report = prove(tmp_path / "home", source).report
    assert (report.counts.tool_events.loaded, report.counts.tool_events.merged) == (20, 11)
    assert (report.rows.merged, report.rows.conflicts, report.rows.unfaithful) == (11, 1, 0)
    assert report.confidence.reconciled
    assert "facts_agree" in {one.name for one in report.findings}


def test_a_second_run_finds_everything_there(tmp_path: Path) -> None:
    """Nothing is new, nothing differs, every entry is skipped, and both sides still hold the same rows."""
    source = bring("six", tmp_path)
    prove(tmp_path / "home", source)
    report = prove(tmp_path / "home", source).report
    assert report.counts.total.loaded == 0
    assert report.counts.total.skipped == report.counts.total.source
    assert (report.rows.equal, report.rows.ours, report.rows.unfaithful) == (66, 0, 0)
    assert report.confidence.reconciled
    assert not report.comparable


def test_what_a_person_wrote_stands_and_is_no_fault(tmp_path: Path) -> None:
    """A score that was set by hand before the run is kept, and counted apart."""
    source = write(tmp_path / "source", [call()], [first(), summary()])
    path = tmp_path / "home" / "state" / "store.db"
    path.parent.mkdir(parents=True)
    store = Store.open(path)
    with store.transaction():
        records.edit(store, "session", f"legacy/{first()['session_id']}", {"score": 12})
    store.close()
    report = prove(tmp_path / "home", source).report
    assert (report.records.otherwise, report.records.unfaithful) == (1, 0)


CHANGES: dict[str, tuple[str, str]] = {
    "a row lost": ("DELETE FROM event WHERE pos = (SELECT max(pos) FROM event)", "missing"),
    "a row altered": ("UPDATE event SET duration_ms = 99999 WHERE pos = (SELECT max(pos) FROM event)", "different"),
    "a row doubled": (
        "INSERT INTO event SELECT pos + 1000, randomblob(16), at, device, type, session, tool, outcome, duration_ms, call,"
        " project, branch, subject, input_bytes, output_bytes, lines_added, lines_removed, tags, batch, more"
        " FROM event WHERE pos = (SELECT max(pos) FROM event)",
        "extra",
    ),
    "a score lost": ("UPDATE record SET fields = json_remove(fields, '$.score') WHERE type = 'session'", "different"),
    "a folder lost": ("UPDATE legacy_extra SET body = json_remove(body, '$.working_directory')", "different"),
    "all of a session lost": ("DELETE FROM legacy_extra", "different"),
}


def changing(sql: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        db = sqlite3.connect(path)
        db.execute(sql)
        db.commit()
        db.close()

    return change


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_happens_to_the_target_is_found_and_named(name: str, tmp_path: Path) -> None:
    """How, and where it stood in the source; the verdict fails and says by how many rows."""
    sql, how = CHANGES[name]
    calls = [call(f"2026-11-22T18:59:{second:02d}Z") for second in range(5, 15)]
    source = write(tmp_path / "source", calls, [first(), summary()])
    report = prove(tmp_path / "home", source, before_proof=changing(sql)).report
    found = report.mismatches[0]
    assert (len(report.mismatches), found.how) == (1, how)
    assert found.file == ("" if how == "extra" else "tool-metrics.jsonl" if found.table == "event" else found.file)
    assert found.line == (10 if found.table == "event" and how != "extra" else found.line)
    assert report.confidence.verdict == "fail"
    assert report.confidence.accuracy_lb < 1
    assert any("1 rows are missing, doubled or different" in reason for reason in report.reasons)
    assert len(report.differing) == 1
    assert "rows_are_equal" in {one.name for one in report.findings}


def test_rows_that_a_rule_of_ones_own_rejects_are_accounted_for(tmp_path: Path) -> None:
    """The second reader does not know the rule; the place in the ledger says which rows it may not miss."""
    rules = tmp_path / "rules.py"
    rules.write_text(
        'RULES = {"no_write": {"what": "x", "severity": "hard"}}\n'
        'def check(row):\n    if row.get("tool") == "Write":\n        yield "no_write", "tool", "Write"\n'
    )
    rules.chmod(0o600)
    lines = [call(f"2026-11-22T18:{m:02d}:{s:02d}Z") for m in (1, 2, 3) for s in range(60)]
    source = write(tmp_path / "source", [*lines, call(tool_name="Write")], [first(), summary()])
    report = prove(tmp_path / "home", source, rules=(str(rules),)).report
    assert (report.rows.excluded, report.rows.unfaithful, report.counts.tool_events.rejected) == (1, 0, 1)
    assert report.confidence.reconciled
    assert {one.name for one in report.rejects} == {"rule_no_write"}


def test_a_call_is_given_to_a_session_with_a_strange_id(tmp_path: Path) -> None:
    """The call and its session have one id, in events the hash of the strange one; both readers say so."""
    strange = first("a b", start="2026-11-22T18:59:00Z")
    source = write(tmp_path / "source", [call(session_id="default-session")], [strange, summary("a b")])
    found = prove(tmp_path / "home", source)
    assert (found.report.rows.equal, found.report.rows.unfaithful) == (3, 0)
    db = sqlite3.connect(found.store)
    sessions = db.execute(
        "SELECT DISTINCT s.session_id FROM event AS e JOIN session AS s ON s.id = e.session"
    ).fetchall()
    db.close()
    assert len(sessions) == 1
    assert str(sessions[0][0]).startswith("hash-")


def test_sessions_without_calls_and_lost_calls_are_said(tmp_path: Path) -> None:
    """Summaries that count calls which no file has: the other folder is missing."""
    documents = []
    for number in range(4):
        documents += [first(f"s{number}"), summary(f"s{number}")]
    report = prove(tmp_path / "home", write(tmp_path / "source", [call(session_id="s0")] * 3, documents)).report
    found = {one.name: one.count for one in report.findings}
    assert found["sessions_have_calls"] == found["counters_add_up"] == 1
    assert report.rows.unfaithful == 0


@pytest.mark.soak
@pytest.mark.parametrize("name", RECORDED)
def test_ten_thousand_faults_are_found(name: str, tmp_path: Path) -> None:
    """On each recorded folder, with other seeds than a run has: 99.95 % needs all of them."""
    work = surveyed(tmp_path / "work", bring(name, tmp_path))
    source = sample.write(tmp_path / "sample", work.files(), Random(7))
    work.close()
    (tmp_path / "bench").mkdir()
    bench = Bench(source, tmp_path / "bench", NOW_US)
    found = measure(bench, seed=7, faults=10_000)
    bench.close()
    assert (found.found, found.seeded) == (10_000, 10_000), [kind for kind in found.kinds if kind.found < kind.seeded]
