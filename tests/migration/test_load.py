"""Loading into the store: once, beside whoever else brings the same facts, and countable to the last entry."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from metricsd.config import Tail as Settings
from metricsd.errors import StoreReplaced
from metricsd.migration.load import StoreSink
from metricsd.migration.model import Counts, Part, Rejected
from metricsd.migration.parse import START, Parser
from metricsd.migration.people import CREATE, make_people
from metricsd.migration.transform import Transform
from metricsd.migration.work import Work
from metricsd.store import imports, legacy_extra, quarantine, records, session_totals, state, summary
from metricsd.store.connection import Store
from metricsd.store.ingest import FOLD_BEFORE
from tests.fakes import FakeClock
from tests.migration.sources import bring, call, surveyed, write_lines
from tests.tail.conftest import Rig

STARTED_SIX = 6


def load(work: Work, store: Store, run: str = "m1", part_rows: int = 5000, parts_max: int = 10**9) -> Counts:
    """Load what is not loaded yet, as the runner does."""
    sink, transform = StoreSink(store, run, "test"), Transform(work, make_people(CREATE, None, None))
    progress = sink.progress()
    counts = progress.counts
    after = progress.after if progress.part else START
    for number, piece in enumerate(Parser(work, part_rows=part_rows).parts(after), start=progress.part + 1):
        if number > parts_max:
            break
        planned = [transform.plan(row, f"{run}.{number}") for row in piece.rows]
        stored = sink.take(Part(run, number, planned, piece.rejected, piece.after), _no_ledger)
        counts += stored.counts
    assert counts.reconciles
    return counts


def _no_ledger(refused: Sequence[Rejected]) -> int:
    return 0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "home" / "store.db", clock=FakeClock())
    yield store
    store.close()


def rows(store: Store, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in store.db.execute(sql).fetchall()]


def test_six_sessions_arrive_whole(tmp_path: Path, store: Store) -> None:
    """Starts, ends, scores, branches in the store; who and where beside it, on this machine alone; and a second time nothing."""
    work = surveyed(tmp_path / "run", bring("six", tmp_path))
    counts = load(work, store)
    assert (counts.sessions.source, counts.sessions.loaded, counts.sessions.merged) == (30, 6, 24)
    assert (counts.tool_events.loaded, counts.tool_events.rejected) == (54, 0)
    assert rows(store, "SELECT count(*), sum(e.batch IS NULL) FROM event AS e") == [(6 + 6 + 54, 0)]
    scores = [record.version.fields.get("score") for record in _sessions(store)]
    assert len(scores) == STARTED_SIX and all(scores)
    extras = [legacy_extra.find(store, "session", row[0]) for row in store.db.execute("SELECT key FROM legacy_extra")]
    assert len(extras) == STARTED_SIX
    assert all(
        extra is not None
        and {"working_directory", "user", "quality_metrics", "workflow_metrics", "final_metrics"} <= extra.keys()
        for extra in extras
    )
    digest = StoreSink(store, "m1", "").digest()
    again = load(work, store, run="m2")
    assert (again.total.loaded, again.total.skipped) == (0, counts.total.source)
    assert StoreSink(store, "m1", "").digest() == digest
    assert rows(store, "SELECT count(*) FROM import_before WHERE run = 'm2'") == [(0,)]
    assert rows(store, "SELECT count(*) FROM record WHERE type = 'import_batch'") == rows(
        store, "SELECT count(DISTINCT batch) FROM event"
    )


def _sessions(store: Store) -> list[records.Record]:
    ids = [row[0] for row in store.db.execute("SELECT id FROM record WHERE type = 'session'").fetchall()]
    return [record for one in ids if (record := records.get(store, "session", one)) is not None]


@pytest.mark.parametrize("first", ["daemon", "migration"])
def test_the_daemon_and_a_migration_bring_nothing_twice(tmp_path: Path, first: str) -> None:
    """Whoever comes second finds everything there; rows, sessions and totals are those of one."""
    source = bring("six", tmp_path)
    rig = Rig(tmp_path / "home", FakeClock(), Settings(older_hooks=(str(source / "agent" / "metrics"),)))
    work = surveyed(tmp_path / "run", source)
    if first == "daemon":
        while rig.tick().more:
            continue
        counts = load(work, rig.store)
        assert (counts.total.loaded, counts.total.skipped) == (0, counts.total.source)
        assert rows(rig.store, "SELECT count(*) FROM event WHERE batch IS NOT NULL") == [(0,)]
    else:
        assert load(work, rig.store).total.loaded == 6 + 54
        assert rig.tick().added == 0
    assert rows(rig.store, "SELECT count(*) FROM event") == [(66,)]
    assert rows(rig.store, "SELECT sum(n) FROM day_total") == [(66,)]
    assert rows(rig.store, "SELECT sum(tool_calls), count(*) FROM session_counters") == [(54, 6)]
    rig.close()


def test_numbers_of_any_length_stop_nothing(tmp_path: Path, store: Store) -> None:
    """What no column can hold is left out by the decoder; what is kept for older clients is kept as it was written."""
    huge = 123456789012345678901234567890
    note = {
        "session_id": "e",
        "start_time": "2026-01-05T08:00:00Z",
        "productivity_score": 1e300,
        "metrics": {"n": huge},
    }
    write_lines(tmp_path / "src" / "sessions" / "x.json", [note])
    odd = call("2026-01-05T08:10:00Z", execution_time_ms=huge, lines_added=2**63 - 1)
    metric = {"id": "m", "toolName": "Read", "createdAt": "2026-01-05T08:10:01Z", "executionCount": huge}
    write_lines(tmp_path / "src" / "tool-metrics.jsonl", [odd, metric])
    counts = load(surveyed(tmp_path / "run", tmp_path / "src"), store)
    assert (counts.total.rejected, counts.sessions.loaded, counts.tool_events.loaded) == (0, 1, 2)
    kept = legacy_extra.find(store, "session", "e")
    assert kept is not None and kept["final_metrics"] == {"n": huge}


def test_a_row_that_the_database_refuses_is_rejected_alone(tmp_path: Path, store: Store) -> None:
    """The others of its part are stored, it lies in quarantine, and the counts say so."""
    lines = [call(f"2026-01-05T08:00:{n:02}Z") for n in range(10)]
    work = surveyed(tmp_path / "run", write_lines(tmp_path / "s" / "tool-metrics.jsonl", lines))
    piece = next(iter(Parser(work).parts()))
    planned = [Transform(work, make_people(CREATE, None, None)).plan(row, "m1.1") for row in piece.rows]
    (item,) = planned[4].items
    spoilt = item._replace(event=replace(item.event, duration_ms=2**70))
    planned[4] = replace(planned[4], items=(spoilt,))
    told: list[Rejected] = []

    def ledger(refused: Sequence[Rejected]) -> int:
        told.extend(refused)
        return 0

    stored = StoreSink(store, "m1", "").take(Part("m1", 1, planned, [], piece.after), ledger)
    assert (stored.counts.tool_events.loaded, stored.counts.tool_events.rejected) == (9, 1)
    assert (
        [(one.reason, one.place.line) for one in told]
        == [("store_refused", 5)]
        == [(one.reason, one.place.line) for one in stored.refused]
    )
    assert rows(store, "SELECT count(*) FROM event") == [(9,)]
    assert [entry.reason for entry in quarantine.list_open(store)] == ["store_refused"]


def test_a_strange_session_id_is_one_session(tmp_path: Path, store: Store) -> None:
    """An id with blanks is stored as its hash: by its calls, its ends, its record, and what is kept beside it."""
    note = {"session_id": "a b/ü", "start_time": "2026-01-05T08:00:00Z", "productivity_score": 7, "user": "ann"}
    write_lines(tmp_path / "src" / "sessions" / "x.json", [note])
    write_lines(tmp_path / "src" / "tool-metrics.jsonl", [call("2026-01-05T08:10:00Z", session="a b/ü")])
    load(surveyed(tmp_path / "run", tmp_path / "src"), store)
    with summary.reading(store.path) as found:
        (session,) = session_totals.read(found)
    assert (session.tool_calls, session.score) == (1, 70)
    assert rows(store, "SELECT key FROM legacy_extra") == [(session.id,)]


def test_a_retracted_part_stops_counting(tmp_path: Path, store: Store) -> None:
    """Each part is an import of its own: one that is turned inactive takes its calls out of every figure."""
    lines = [call(f"2026-01-05T08:00:{n:02}Z", session="s") for n in range(30)]
    work = surveyed(tmp_path / "run", write_lines(tmp_path / "src" / "tool-metrics.jsonl", lines))
    load(work, store, part_rows=10)
    with store.transaction():
        records.edit(store, imports.TYPE, "m1.2", {"active": False})
    with summary.reading(store.path) as found:
        (session,) = session_totals.read(found)
    assert session.tool_calls == 20


def test_a_run_that_was_cut_off_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Wherever it stopped between two parts, digest and counts are the same, and no part is loaded twice."""
    lines = [call(f"2026-01-05T08:{n // 60:02}:{n % 60:02}Z", session="s", tool=f"T{n % 7}") for n in range(200)]
    work = surveyed(tmp_path / "run", write_lines(tmp_path / "src" / "tool-metrics.jsonl", [*lines, "torn"]))
    whole = Store.open(tmp_path / "whole" / "store.db", clock=FakeClock())
    counts = load(work, whole, part_rows=16)
    wanted = StoreSink(whole, "m1", "").digest()
    for stop in range(1, 13):
        store = Store.open(tmp_path / str(stop) / "store.db", clock=FakeClock())
        load(work, store, part_rows=16, parts_max=stop)
        assert load(work, store, part_rows=16) == counts
        assert StoreSink(store, "m1", "").digest() == wanted
        store.close()
    whole.close()


def test_rows_and_checkpoint_of_a_part_commit_together(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in between, a reader finds the rows with the checkpoint that covers them, or neither."""
    path = write_lines(tmp_path / "s" / "tool-metrics.jsonl", [call("2026-01-05T08:00:00Z")])
    seen: list[tuple[object, ...]] = []
    begin = store.transaction

    @contextlib.contextmanager
    def watched(*, full: bool = False) -> Iterator[sqlite3.Connection]:
        with begin(full=full) as db:
            yield db
        seen.extend(rows(store, "SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM import_run)"))

    monkeypatch.setattr(store, "transaction", watched)
    load(surveyed(tmp_path / "run", path), store)
    assert seen == [(1, 1)]


def test_a_part_is_taken_behind_the_one_before_it_alone(tmp_path: Path, store: Store) -> None:
    """A store that does not hold the part before is another one, and says so; nothing is stored."""
    work = surveyed(
        tmp_path / "run", write_lines(tmp_path / "s" / "tool-metrics.jsonl", [call("2026-01-05T08:00:00Z")])
    )
    piece = next(iter(Parser(work).parts()))
    planned = [Transform(work, make_people(CREATE, None, None)).plan(row, "m1.2") for row in piece.rows]
    with pytest.raises(StoreReplaced):
        StoreSink(store, "m1", "").take(Part("m1", 2, planned, [], piece.after), _no_ledger)
    assert rows(store, "SELECT count(*) FROM event") == [(0,)]


def test_what_was_rejected_lies_in_quarantine_with_its_place(tmp_path: Path, store: Store) -> None:
    """The bytes of every bad line, secrets scrubbed, can be got back; many alike share one entry."""
    bad = ["torn {", '{"event_type":"tool_execution","auth_token":"5ec2e7"}', *(f"not json {n}" for n in range(40))]
    path = write_lines(tmp_path / "src" / "tool-metrics.jsonl", [call("2026-01-05T08:00:00Z"), *bad])
    counts = load(surveyed(tmp_path / "run", path), store)
    assert (counts.tool_events.loaded, counts.tool_events.rejected) == (1, 42)
    entries = quarantine.list_open(store)
    assert sorted(entry.reason for entry in entries) == ["bad_json", "bad_time"]
    kept = b"".join(quarantine.bytes_of(store, entry) or b"" for entry in entries)
    assert all(f"not json {n}".encode() in kept for n in range(40)) and b"5ec2e7" not in kept
    assert {entry.file for entry in entries} == {"tool-metrics.jsonl"}


def test_what_is_older_than_the_fold_is_refused(tmp_path: Path, store: Store) -> None:
    """Retention has folded it: whether it was counted can no longer be told."""
    lines = [call("2026-01-05T08:00:00Z"), call("2026-03-05T08:00:00Z")]
    with store.transaction():
        state.put(store, FOLD_BEFORE, 1_770_000_000_000_000)
    counts = load(surveyed(tmp_path / "run", write_lines(tmp_path / "s" / "tool-metrics.jsonl", lines)), store)
    assert (counts.tool_events.loaded, counts.tool_events.rejected) == (1, 1)
    assert [entry.reason for entry in quarantine.list_open(store)] == ["too_old"]


def test_copies_of_one_folder_in_one_source_are_merged(tmp_path: Path, store: Store) -> None:
    """A backup beside the folder tells of the same facts: they are counted as merged, not loaded."""
    for name in ("now", "backup"):
        bring("first", tmp_path / name)
    counts = load(surveyed(tmp_path / "run", tmp_path), store)
    assert (counts.tool_events.loaded, counts.sessions.loaded) == (15, 1)
    assert counts.tool_events.merged == 15 + 2 + 2
