"""Sessions of reports: several devices as one, retractions taken back, added-up calls added; agents counted."""

from __future__ import annotations

from pathlib import Path

from metricsd.store import events, session_totals
from metricsd.store.agent_runs import agent_runs
from metricsd.store.connection import Store
from metricsd.store.counters import put_remote
from metricsd.store.retention import fold
from metricsd.store.summary import reading
from tests.analytics.support import delete_session, item, note_session, put, put_metric, set_batch
from tests.fakes import START_US, FakeClock


def test_devices_of_a_session_are_one(tmp_path: Path) -> None:
    """Counters are summed, the later device's project shows, and a hashed id is one with its plain one."""
    store = Store.open(tmp_path / "store.db")
    put(store, [item(1, session="s", project="mine", at=START_US)])
    values = {
        "events": 4,
        "tool_calls": 3,
        "tool_failures": 1,
        "started_at": START_US - 5,
        "last_at": START_US + 9,
        "project": "h:1",
    }
    with store.transaction():
        put_remote(store, "other", "claude-code", "h:hash", values, "1.a")
    store.close()
    with reading(tmp_path / "store.db") as summary:
        apart = session_totals.read(summary)
        one = session_totals.read(
            summary, address=lambda app, session: f"{app}/{'h:hash' if session == 's' else session}"
        )
    assert len(apart) == 2
    assert [(s.id, s.tool_calls, s.tool_failures, s.started_at, s.last_at, s.project) for s in one] == [
        ("s", 4, 1, START_US - 5, START_US + 9, "h:1")
    ]


def test_a_session_is_whole_also_when_only_one_device_was_active_lately(tmp_path: Path) -> None:
    """A span chooses sessions, never parts of one."""
    store = Store.open(tmp_path / "store.db")
    put(store, [item(1, session="s", at=START_US)])
    late = {"events": 2, "tool_calls": 2, "started_at": START_US + 9, "last_at": START_US + 99}
    with store.transaction():
        put_remote(store, "other", "claude-code", "s", late, "1.a")
    store.close()
    with reading(tmp_path / "store.db") as summary:
        assert [(one.tool_calls, one.started_at) for one in session_totals.read(summary, since_us=START_US + 50)] == [
            (3, START_US)
        ]


def test_what_was_noted_long_ago_is_told_of_a_session_that_was_active_lately(tmp_path: Path) -> None:
    """A span is no reason to forget a session's description; a note alone makes a session active when it says so."""
    store = Store.open(tmp_path / "store.db")
    put(
        store,
        [item(1, session="s", at=START_US), item(2, session="s", at=START_US + 99), item(3, session="o", at=START_US)],
    )
    note_session(store, "s", started_at=START_US - 9, description="x", focus_time_ms=7)
    note_session(store, "noted", started_at=START_US - 9, ended_at=START_US + 60, description="y")
    note_session(store, "old", started_at=START_US - 9, ended_at=START_US, description="z")
    store.close()
    with reading(tmp_path / "store.db") as summary:
        found = session_totals.read(summary, since_us=START_US + 50)
        assert [(one.id, one.description, one.focus_ms, one.tool_calls) for one in found] == [
            ("noted", "y", None, 0),
            ("s", "x", 7, 2),
        ]


def test_a_retracted_import_is_taken_back_from_its_sessions(tmp_path: Path) -> None:
    """A session that it made goes, one that it added to keeps the rest; after retention too; and it comes back."""
    clock = FakeClock()
    store = Store.open(tmp_path / "store.db", clock=clock)
    put(
        store,
        [
            item(1, session="both"),
            item(2, session="both", batch="b", outcome="failed", lines_added=5),
            item(3, session="both", batch="b", kind="prompt_submitted"),
            item(4, session="gone", batch="b"),
        ],
    )

    def found() -> list[tuple[object, ...]]:
        with reading(tmp_path / "store.db") as summary:
            rows = session_totals.read(summary)
            assert sum(session_totals.starts(summary).values()) == len(rows)
        return [(one.id, one.tool_calls, one.tool_failures, one.lines_added, one.prompts) for one in rows]

    everything = [("both", 2, 1, 5, 1), ("gone", 1, 0, 0, 0)]
    assert sorted(found()) == everything
    set_batch(store, "b", active=False)
    assert found() == [("both", 1, 0, 0, 0)]
    clock.jump(90 * 86400)
    assert fold(store, days=30, synced_through=None) == 4
    assert found() == [("both", 1, 0, 0, 0)]
    set_batch(store, "b", active=True)
    assert sorted(found()) == everything
    store.close()


def test_added_up_calls_belong_to_their_session(tmp_path: Path) -> None:
    """Unless it was deleted; a metric of no session is nobody's."""
    store = Store.open(tmp_path / "store.db")
    put(store, [item(1, session="s"), item(2, session="deleted")])
    for number, session in enumerate(("s", "deleted", "unknown")):
        put_metric(
            store, f"m{number}", app="claude-code", session=session, tool="Bash", execution_count=10, error_count=2, total_duration_ms=50
        )  # fmt: skip
    delete_session(store, "deleted")
    store.close()
    with reading(tmp_path / "store.db") as summary:
        assert [(s.id, s.tool_calls, s.tool_failures, s.tool_ms) for s in session_totals.read(summary)] == [
            ("s", 11, 2, 60)
        ]
        assert sum(metric.n for metric in summary.metrics()) == 20


def test_agents_are_counted_by_their_runs(tmp_path: Path) -> None:
    """A run that is told of by its call and by its end is one; deleted and retracted ones do not count."""
    store = Store.open(tmp_path / "store.db")
    day = 86_400_000_000
    put(
        store,
        [
            *(item(n, kind="subagent_ended", tool=None, agent="reviewer") for n in range(3)),
            *(item(n, tool="Task", agent="reviewer") for n in range(10, 12)),
            item(20, tool="Task", agent="planner", at=START_US - 3 * day),
            item(21, tool="Read", agent="reader"),
            item(22, kind="subagent_ended", tool=None, agent="planner", session="deleted"),
            item(23, kind="subagent_ended", tool=None, agent="planner", batch="b"),
        ],
    )
    delete_session(store, "deleted")
    set_batch(store, "b", active=False)
    store.close()
    with reading(tmp_path / "store.db") as summary:
        today = summary.days.of(START_US)
        assert agent_runs(summary) == {"reviewer": 3, "planner": 1}
        assert agent_runs(summary, (today, today)) == {"reviewer": 3}


def test_moved_events_are_counted_once(tmp_path: Path) -> None:
    """An event that the cloud gives to another device leaves its day and hour with one count."""
    store = Store.open(tmp_path / "store.db")
    put(store, [item(1), item(2)])
    with store.transaction():
        events.move(store, [1], events.device_row(store, "other"))
    store.close()
    with reading(tmp_path / "store.db") as summary:
        assert [cell.n for cell in summary.cells()] == [2]
        assert sum(cell.n for cell in summary.hours()) == 2
