"""The same report over totals and over a full scan of the events is the same, whatever happened to the store."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.analytics import periods
from metricsd.ids import line_id
from metricsd.store import counters, events, session_totals
from metricsd.store import sessions as sessions_of
from metricsd.store.calendar import Days, days_in
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.store.retention import fold
from metricsd.store.summary import ALL_DAYS, Summary, reading
from tests.analytics.support import (
    added_up,
    delete_session,
    item,
    note_session,
    put,
    put_metric,
    set_batch,
    set_selection,
)
from tests.fakes import START_US, FakeClock

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
SPRING_US = int(datetime(2026, 3, 29, 0, 30, tzinfo=UTC).timestamp()) * 1_000_000
"""Half an hour before Berlin's clocks go forward."""
AUTUMN_US = int(datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()) * 1_000_000
WAYS = (
    ("day", "kind", "bucket"),
    ("tool", "kind", "bucket"),
    ("project", "kind", "bucket"),
    ("day", "app", "kind", "tool", "project", "bucket"),
    ("day", "tool"),
    (),
)
UNDO_STEPS = """
DROP TABLE day_total; DROP TABLE hour_total; DROP INDEX event_batch; DROP TABLE folded_batch;
DROP INDEX session_counters_started; DROP INDEX session_counters_active;
DROP INDEX legacy_extra_who; DROP INDEX legacy_extra_began;
ALTER TABLE legacy_extra DROP COLUMN who; ALTER TABLE legacy_extra DROP COLUMN began;
DROP TABLE import_run; DROP TABLE import_part; DROP TABLE import_before;
DROP TABLE retracted_batch; DROP TABLE retracted_total;
DROP TABLE rollback; DROP TABLE rollback_before; DROP TABLE rollback_events; DROP TABLE import_mark;
DROP TRIGGER device_renamed; DROP TRIGGER session_added;
DROP TRIGGER session_counters_added; DROP TRIGGER session_counters_changed; DROP TRIGGER session_counters_dropped;
DROP TRIGGER session_record_added; DROP TRIGGER session_record_changed; DROP TRIGGER session_record_dropped;
DROP TABLE day_mark; DROP TABLE session_mark; PRAGMA user_version = 3
"""
"""Makes a store what it was before the steps of totals and of session times."""
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia")

times = st.sampled_from([SPRING_US, AUTUMN_US, START_US]).flatmap(
    lambda base: st.integers(-30, 30).map(lambda quarters: base + quarters * HOUR_US // 4)
)
sessions = st.sampled_from(["a", "b", "c"])
facts = st.fixed_dictionaries(
    {
        "at": times,
        "kind": st.sampled_from(["tool_used", "tool_used", "session_started", "prompt_submitted", "subagent_ended"]),
        "session": st.none() | sessions,
        "tool": st.sampled_from(["Bash", "Read", None]),
        "outcome": st.sampled_from(["ok", "failed", "interrupted", None]),
        "duration_ms": st.none() | st.integers(0, 100_000),
        "project": st.sampled_from(["x", "y", None]),
        "lines_added": st.none() | st.integers(0, 50),
        "batch": st.none() | st.sampled_from(["import-1", "import-2"]),
    }
)
metric_fields = st.fixed_dictionaries(
    {"app": st.just("claude-code"), "session": sessions, "tool": st.sampled_from(["Bash", "Edit"])},
    optional={
        "started_at": times,
        "execution_count": st.integers(0, 20),
        "error_count": st.integers(0, 5),
        "success_rate": st.floats(0, 1),
        "total_duration_ms": st.integers(0, 10_000),
        "batch": st.sampled_from(["import-1", "import-2"]),
    },
)
steps = st.one_of(
    st.tuples(st.just("take"), st.lists(st.tuples(st.integers(0, 60), facts), min_size=1, max_size=6)),
    st.tuples(st.just("pull"), st.lists(st.tuples(st.integers(0, 60), facts), min_size=1, max_size=3)),
    st.tuples(st.just("delete"), sessions),
    st.tuples(st.just("bring back"), sessions),
    st.tuples(st.just("retract"), st.sampled_from(["import-1", "import-2"])),
    st.tuples(st.just("activate"), st.sampled_from(["import-1", "import-2"])),
    st.tuples(
        st.sampled_from(["exclude", "include"]),
        st.tuples(st.sampled_from(["import-1", "import-2"]), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
    ),
    st.tuples(st.just("metric"), st.tuples(st.sampled_from("mno"), metric_fields)),
    st.tuples(st.just("give away"), st.integers(1, 8)),
)


def do(store: Store, what: str, value: Any) -> None:
    """Carry out one step of a history."""
    match what:
        case "take":
            put(store, [item(number, **changes) for number, changes in value])
        case "pull":
            with store.transaction():
                device = events.device_row(store, "another")
            put(store, [item(number, **changes) for number, changes in value], device=device)
        case "delete":
            delete_session(store, value)
        case "bring back":
            note_session(store, value, description="again")
        case "retract" | "activate":
            set_batch(store, value, active=what == "activate")
        case "exclude" | "include":
            set_selection(store, *value, active=what == "include")
        case "metric":
            put_metric(store, value[0], **value[1])
        case "give away":
            with store.transaction():
                rows = store.db.execute("SELECT pos FROM event WHERE pos > 0 ORDER BY pos LIMIT ?", (value,))
                events.move(store, [pos for (pos,) in rows.fetchall()], events.device_row(store, "another"))


def compare(summary: Summary, days: tuple[int, int]) -> None:
    for by in WAYS:
        assert added_up(summary.cells(*by, days=days)) == added_up(summary.scanned(*by, days=days)), (by, days)
    by_hour: dict[tuple[int, str | None], list[int]] = {}
    for hour in summary.hours(days):
        sums = by_hour.setdefault((hour.day, hour.kind), [0, 0])
        sums[0] += hour.n
        sums[1] += hour.failed
    counted = added_up(summary.scanned("day", "kind", days=days))
    assert {key: sums for key, sums in by_hour.items() if sums[0]} == {
        (key[0], key[2]): sums[:2] for key, sums in counted.items() if sums[0]
    }


@settings(max_examples=60)
@given(st.lists(steps, min_size=1, max_size=14), st.sampled_from(ZONES), st.sampled_from(ZONES))
def test_totals_say_what_the_events_say(history: list[tuple[str, Any]], stored: str, read: str) -> None:
    """After deletes, corrections, late and repeated events, in the zone they are kept in and in any other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        store = Store.open(path, clock=FakeClock())
        store.days = days_in(stored)
        for what, value in history:
            do(store, what, value)
        store.close()
        for zone in {stored, read}:
            with reading(path, days=days_in(zone)) as summary:
                day = summary.days.of(SPRING_US)
                for days in (ALL_DAYS, (day, day), (day + 1, day + 300)):
                    compare(summary, days)


@settings(max_examples=25)
@given(st.lists(steps, min_size=2, max_size=10), st.sampled_from(ZONES))
def test_retention_changes_no_report(history: list[tuple[str, Any]], read: str) -> None:
    """What is folded into the totals and dropped still counts as it did, deleted and retracted things included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        clock = FakeClock()
        store = Store.open(path, clock=clock)
        store.days = days_in("Europe/Berlin")
        for what, value in history:
            do(store, what, value)

        def report() -> Any:
            with reading(path, days=days_in("Europe/Berlin")) as summary:
                sessions = session_totals.read(summary)
                return [added_up(summary.cells(*by)) for by in WAYS], session_totals.starts(summary), sessions

        before = report()
        clock.jump((AUTUMN_US + 31 * DAY_US - clock.now_us()) / 1_000_000)
        fold(store, days=30, synced_through=None)
        assert report() == before
        with reading(path, days=days_in(read)) as summary:
            # In another zone the dropped days stay those they were counted in; nothing is lost or doubled.
            assert added_up(summary.cells("tool", "kind")) == before[0][1] or sum(
                sums[0] for sums in added_up(summary.cells()).values()
            ) == sum(sums[0] for sums in before[0][5].values())
        store.close()


def test_a_day_is_the_users_also_when_clocks_change(tmp_path: Path) -> None:
    """23 hours of a spring day and 25 of an autumn day, each one day; midnight is the user's."""
    store = Store.open(tmp_path / "store.db")
    store.days = days_in("Europe/Berlin")
    number = 0
    for noon in (datetime(2026, 3, 29, 10, tzinfo=UTC), datetime(2026, 10, 25, 11, tzinfo=UTC)):
        middle = int(noon.timestamp()) * 1_000_000
        put(store, [item(number := number + 1, at=middle + hour * HOUR_US) for hour in range(-16, 17)])
    store.close()
    with reading(tmp_path / "store.db", days=days_in("Europe/Berlin")) as summary:
        found = {cell.day: cell.n for cell in summary.cells("day")}
        spring, autumn = (
            summary.days.of(int(datetime(2026, *day, 12, tzinfo=UTC).timestamp()) * 1_000_000)
            for day in ((3, 29), (10, 25))
        )
        assert (found[spring], found[autumn]) == (23, 25)
        assert summary.days.start_us(spring + 1) - summary.days.start_us(spring) == 23 * HOUR_US


def test_the_zone_of_the_totals_is_the_first_writers(tmp_path: Path) -> None:
    """Somebody who moves sees the days of where they are now; the totals go on in the zone they began in."""
    store = Store.open(tmp_path / "store.db")
    store.days = days_in("Europe/Berlin")
    late = int(datetime(2026, 1, 1, 23, 30, tzinfo=UTC).timestamp()) * 1_000_000
    put(store, [item(1, at=late)])
    store.close()
    store = Store.open(tmp_path / "store.db")
    store.days = days_in("Asia/Tokyo")
    put(store, [item(2, at=late)])
    assert store.days.name == "Europe/Berlin"
    store.close()
    for zone, date in (("Europe/Berlin", 2), ("UTC", 1), ("Asia/Tokyo", 2), ("America/New_York", 1)):
        with reading(tmp_path / "store.db", days=days_in(zone)) as summary:
            (day,) = periods.daily(summary.cells("day", "kind", "bucket"), session_totals.starts(summary))
            assert (day.day, day.events) == ((datetime(2026, 1, date) - datetime(1970, 1, 1)).days, 2), zone


def test_what_was_deleted_before_it_was_folded_stays_out(tmp_path: Path) -> None:
    """A deleted session whose events were dropped does not come back into the totals."""
    clock = FakeClock()
    store = Store.open(tmp_path / "store.db", clock=clock)
    put(store, [item(1, session="gone"), item(2, session="kept")])
    delete_session(store, "gone")
    clock.jump(40 * 86400)
    assert fold(store, days=30, synced_through=None) == 2
    store.close()
    with reading(tmp_path / "store.db") as summary:
        assert [cell.n for cell in summary.cells()] == [1]
        assert sum(cell.n for cell in summary.hours()) == 1


def test_an_older_stores_totals_are_made_from_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema step fills days and hours; a report on a store that nothing opened yet brings it up to date."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    import time

    time.tzset()
    try:
        path = tmp_path / "store.db"
        store = Store.open(path)
        store.days = days_in("Asia/Kolkata")
        put(store, [item(n, at=START_US + n * 7 * HOUR_US, outcome=("ok", "failed")[n % 2]) for n in range(9)])
        store.db.executescript(UNDO_STEPS)
        store.close()
        with reading(path, days=days_in("Asia/Kolkata")) as summary:
            compare(summary, ALL_DAYS)
            assert sum(cell.failed for cell in summary.hours()) == 4
            assert summary.db is not None
            for said, marked in (
                ("SELECT DISTINCT day FROM rollup ORDER BY 1", "SELECT day FROM day_mark ORDER BY 1"),
                ("VALUES (-1), (0)", "SELECT page FROM session_mark ORDER BY 1"),
            ):
                assert summary.db.execute(marked).fetchall() == summary.db.execute(said).fetchall()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_store_is_no_totals(tmp_path: Path) -> None:
    """Before the first event there is nothing to report, and nothing is created."""
    with reading(tmp_path / "store.db") as summary:
        assert (
            summary.cells("day"),
            summary.hours(),
            session_totals.starts(summary),
            session_totals.read(summary),
        ) == ([], [], {}, [])
    assert not (tmp_path / "store.db").exists()


def test_a_calendar_knows_its_name() -> None:
    """Aliases of UTC are one zone; an unknown name falls back to the system's own."""
    assert days_in("UTC").name == "UTC"
    assert days_in("Nowhere/At_All").name == Days(None).name


def test_a_noted_start_counts_where_the_told_one_was_retracted(tmp_path: Path) -> None:
    """An import brought a session's start and was taken out again; somebody had noted when it began."""
    path = tmp_path / "store.db"
    store = Store.open(path, clock=FakeClock())
    put(store, [item(1, kind="session_started", session="a", at=START_US, batch="r1.1")])
    put(store, [item(2, session="b", at=START_US, batch="r1.1"), item(3, session="b", at=START_US)])
    for session in "ab":
        note_session(store, session, started_at=START_US - 3 * HOUR_US)
    set_batch(store, "r1.1", active=False)
    store.close()
    with reading(path) as summary:
        assert sorted(one.id for one in session_totals.read(summary)) == ["a", "b"]
        assert sum(session_totals.starts(summary).values()) == 2


@settings(max_examples=40)
@given(st.lists(steps, min_size=1, max_size=12), st.data())
def test_sessions_are_those_of_the_session_list(history: list[tuple[str, Any]], data: st.DataObject) -> None:
    """The fast reading of thousands of sessions and `session list` agree on each, and so do the days they began on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        store = Store.open(path, clock=FakeClock())
        for what, value in history:
            if what != "metric":
                do(store, what, value)
        for name in data.draw(st.lists(sessions, max_size=2)):
            noted: dict[str, Any] = {
                "started_at": data.draw(times),
                "ended_at": data.draw(times),
                "description": "x",
                "tags": ["t"],
            }
            note_session(store, name, **noted)
        if data.draw(st.booleans()):
            counters.close_idle(store, 1)
        slow = {
            one.session_id: (
                one.started_at,
                one.ended_at,
                one.end_reason,
                one.project,
                one.numbers["tool_calls"],
                one.field("description"),
            )
            for one in sessions_of.read_all(store, lambda app, session_id: f"{app}/{session_id}")
            if not one.deleted and one.started_at
        }
        store.close()
        with reading(path) as summary:
            found = session_totals.read(summary)
            began = session_totals.starts(summary)
            for day in {*began, summary.days.of(SPRING_US)}:
                some = {day: began[day]} if day in began else {}
                assert session_totals.starts(summary, (day, day)) == some
                since_us = summary.days.start_us(day)
                recent = [one for one in found if one.last_at >= since_us]
                assert session_totals.read(summary, since_us=since_us) == recent
        assert {
            one.id: (one.started_at, one.ended_at, one.end_reason, one.project, one.tool_calls, one.description)
            for one in found
        } == slow
        assert sum(began.values()) == len(found)
        for day, count in began.items():
            assert count == sum(summary.days.of(one.started_at) == day for one in found)


def test_an_event_whose_line_had_no_time_is_found_by_its_day(tmp_path: Path) -> None:
    """Its id begins with zeros, so a stretch of ids alone would miss it."""
    store = Store.open(tmp_path / "store.db")
    store.days = days_in("UTC")
    _, event = item(1)
    put(store, [Identified(line_id(b"no time", 0, 0), event), item(2, session="gone")])
    delete_session(store, "gone")
    store.close()
    for zone in ("UTC", "Asia/Tokyo"):
        with reading(tmp_path / "store.db", days=days_in(zone)) as summary:
            day = summary.days.of(event.at)
            assert added_up(summary.cells(days=(day, day))) == added_up(summary.scanned(days=(day, day)))
            assert sum(sums[0] for sums in added_up(summary.cells(days=(day, day))).values()) == 1
