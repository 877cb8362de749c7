"""What is remembered between writes says what reading everything says, whatever was written, by whomever."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.store import counters, rollbacks, session_totals
from metricsd.store import remembered as module
from metricsd.store.calendar import days_in
from metricsd.store.connection import Store
from metricsd.store.remembered import BY, Remembered
from metricsd.store.retention import fold
from metricsd.store.rollbacks import Wanted
from metricsd.store.summary import DAY_MAX, Summary, reading
from metricsd.totals import Cell, SessionTotal
from tests.analytics.support import item, note_session, put, set_batch
from tests.analytics.test_totals_equal_events import AUTUMN_US, DAY_US, SPRING_US, do, steps, times
from tests.fakes import START_US, FakeClock
from tests.store.imported import load

notes = st.fixed_dictionaries(
    {"description": st.sampled_from(["x", "y"])},
    optional={
        "started_at": times, "ended_at": times, "score": st.integers(0, 100), "focus_time_ms": st.integers(0, 9),
    },
)  # fmt: skip
remote = st.fixed_dictionaries(
    {"events": st.integers(0, 3), "tool_calls": st.integers(0, 9), "started_at": times, "last_at": times}
)
more_steps = st.one_of(
    steps,
    st.tuples(st.just("note"), st.tuples(st.sampled_from("abcn"), notes)),
    st.tuples(st.just("remote"), st.tuples(st.sampled_from("abcr"), remote)),
    st.tuples(st.sampled_from(["close idle", "retention", "put back", "lose", "import"]), st.none()),
    st.tuples(st.sampled_from(["roll back", "import"]), st.none()),
)
SINCE_US = START_US - 5 * DAY_US


class Home:
    """A store that is written to and put back to a copy, and one memory of it for its whole life."""

    def __init__(self, folder: Path) -> None:
        self.path, self.copy = folder / "store.db", folder / "copy.db"
        self.clock = FakeClock()
        self.runs = 0
        self.store = self.open()
        self.remembered = Remembered()

    def open(self) -> Store:
        store = Store.open(self.path, clock=self.clock)
        store.days = days_in("Europe/Berlin")
        # On pages of their own.
        known = [(1, "a"), (64, "b"), (200, "c"), (300, "s0")]
        store.db.executemany("INSERT OR IGNORE INTO session VALUES (?, 'claude-code', ?)", known)
        return store

    def do(self, what: str, value: Any) -> None:
        match what:
            case "note":
                note_session(self.store, value[0], **value[1])
            case "remote":
                with self.store.transaction():
                    counters.put_remote(self.store, "third", "claude-code", value[0], value[1], "1.a")
            case "close idle":
                counters.close_idle(self.store, 1)
            case "retention":
                self.clock.jump(DAY_US / 1_000_000)
                fold(self.store, days=1, synced_through=None)
            case "put back":
                self.put_back()
            case "lose":
                self.store.close()
                self.path.unlink()
                self.store = self.open()
            case "import":
                self.runs += 1
                load(self.store, f"r{self.runs:03}", 1, range(self.runs % 3, 9))
            case "roll back":
                (run,) = self.store.db.execute("SELECT max(run) FROM import_part").fetchone()
                if run is not None:
                    rollbacks.run(self.store, Wanted(run))
            case _:
                do(self.store, what, value)

    def put_back(self) -> None:
        """Put the store back to the copy that was made the last time."""
        self.store.close()
        if self.copy.exists():
            shutil.copy(self.copy, self.path)
        else:
            shutil.copy(self.path, self.copy)
        self.store = self.open()

    def look(self, since_us: int) -> list[Any]:
        """Return what the memory says, which is what reading everything says, in the totals' zone and in another one."""
        said: list[Any] = []
        for zone in ("Europe/Berlin", "UTC"):
            with reading(self.path, days=days_in(zone)) as summary:
                first = summary.days.of(since_us)
                cells = self.remembered.cells(summary, first)
                assert cells == summary.cells(*BY, days=(first, DAY_MAX))
                found = self.remembered.sessions(summary, since_us)
                assert found == session_totals.read(summary, since_us=since_us)
                said += [cells, found]
        return said


@settings(max_examples=60)
@given(st.lists(st.tuples(more_steps, st.none() | st.sampled_from([SPRING_US, START_US, AUTUMN_US])), max_size=24))
def test_what_is_remembered_is_what_is_there(history: list[tuple[tuple[str, Any], int | None]]) -> None:
    """After takes, edits, deletes, corrections, retractions, retention, other devices' rows, and a copy put back."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        for (what, value), since_us in history:
            home.do(what, value)
            if since_us is not None:
                home.look(since_us - DAY_US)
        home.look(SPRING_US - DAY_US)
        home.store.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A store of one call in each of sessions a to c, on three days, which is remembered."""
    made = Home(tmp_path)
    put(made.store, [item(n, session="abc"[n], at=START_US - n * DAY_US) for n in range(3)])
    made.look(SINCE_US)
    return made


def test_only_what_was_written_is_read_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of sessions and a day after a call, a page after an edit, all days once other imports count."""
    pages: list[int] = []
    stretches: list[tuple[int, int]] = []
    of_page, kept_cells = session_totals.of_page, Summary.kept_cells

    def seen_page(summary: Summary, page: int) -> dict[str, SessionTotal]:
        pages.append(page)
        return of_page(summary, page)

    def seen_days(self: Summary, *by: str, days: tuple[int, int]) -> list[Cell]:
        stretches.append(days)
        return kept_cells(self, *by, days=days)

    monkeypatch.setattr(session_totals, "of_page", seen_page)
    monkeypatch.setattr(Summary, "kept_cells", seen_days)

    def look() -> tuple[list[int], int]:
        pages.clear()
        stretches.clear()
        with reading(home.path, days=days_in("Europe/Berlin")) as summary:
            home.remembered.cells(summary, summary.days.of(SINCE_US))
            home.remembered.sessions(summary, SINCE_US)
        return pages.copy(), sum(last - first + 1 for first, last in stretches)

    assert look() == ([], 0)
    put(home.store, [item(9, session="b", at=START_US)])
    assert look() == ([1], 1)
    note_session(home.store, "c", description="x")
    assert look() == ([3], 0)
    set_batch(home.store, "unknown", active=False)
    assert look() == ([], 3)
    home.store.close()


@pytest.mark.parametrize("sql", [
    "UPDATE session_counters SET tool_calls = tool_calls + 1",
    "DELETE FROM session_counters WHERE session = 64",
    "INSERT OR REPLACE INTO session_counters (session, device, started_at, last_at, events) VALUES (64, 1, 5, 6, 7)",
    "INSERT OR IGNORE INTO session_counters (session, device, started_at, last_at, events) VALUES (300, 1, 1, {now}, 1)",
    "INSERT INTO record (type, id, fields, stamps) VALUES ('session', 'claude-code/a', '{{\"description\": \"x\"}}', '')",
    "INSERT INTO record (type, id, fields, stamps) VALUES ('session', 'a/alone', '{{\"started_at\": {now}}}', '')",
    "UPDATE record SET fields = '{{}}' WHERE id = 'claude-code/c'",
    "UPDATE record SET deleted = 1 WHERE id = 'claude-code/c'",
    "DELETE FROM record",
    "UPDATE hour_total SET n = n + 1; UPDATE rollup SET n = n + 1",
    "DELETE FROM hour_total; DELETE FROM rollup",
    "INSERT INTO rollup SELECT day, device, type, tool, project, batch, 77, 1, 0, 0, 0, 0 FROM rollup ORDER BY day LIMIT 1;"
    "INSERT INTO hour_total SELECT day, 24, device, type, batch, 1, 0 FROM hour_total ORDER BY day LIMIT 1",
    "INSERT INTO retracted_total SELECT session, 1, 1, 0, 0, 0, 0 FROM session_counters",
])  # fmt: skip
def test_whoever_writes_moves_the_marks(home: Home, sql: str) -> None:
    """Also a program that knows nothing of marks, as an older metricsd."""
    note_session(home.store, "c", description="x")
    before = home.look(SINCE_US)
    with closing(sqlite3.connect(home.path)) as other:
        other.executescript(sql.format(now=START_US))
    assert home.look(SINCE_US) != before
    home.store.close()


def test_a_long_span_is_not_remembered_and_as_right(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on sessions, on days and on notes costs time alone."""
    monkeypatch.setattr(module, "PAGES_MAX", 2)
    monkeypatch.setattr(module, "DAYS_MAX", 2)
    monkeypatch.setattr(module, "NOTES_MAX", 2)
    for session in "abc":
        note_session(home.store, session, description="x", started_at=START_US)
    home.remembered = Remembered()
    for n in range(3):
        home.look(SINCE_US)
        put(home.store, [item(10 + n, session="b", at=START_US)])
    home.look(SINCE_US)
    assert home.remembered._pages == {} and len(home.remembered._days) == 2 and home.remembered._notes == {}
    home.store.close()


def test_the_newest_spans_notes_are_remembered(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever spans are asked for, their number and that of their notes are bounded."""
    monkeypatch.setattr(module, "NOTES_MAX", 4)
    for session in "ab":
        note_session(home.store, session, description="x", started_at=START_US)
    for day in range(5):
        home.look(SINCE_US - day * DAY_US)
        home.look(SINCE_US)
    assert [len(notes.texts) for notes in home.remembered._notes.values()] == [2, 2]
    assert list(home.remembered._notes) == [SINCE_US - 4 * DAY_US, SINCE_US]
    home.store.close()


def test_whoever_asks_meanwhile_takes_nothing_away(home: Home) -> None:
    """Another thread may put a shorter memory in its place at any moment."""

    class Replaced(dict[int, Any]):
        def __contains__(self, day: object) -> bool:
            home.remembered._days = {}
            return super().__contains__(day)

    home.remembered._days = Replaced(home.remembered._days)
    home.look(SINCE_US)
    home.store.close()


def test_another_name_of_a_device_moves_the_marks(home: Home) -> None:
    """Its name decides whose word counts where two say something at the same time."""
    before = home.store.db.execute("SELECT page, mark FROM session_mark").fetchall()
    with home.store.transaction():
        home.store.db.execute("UPDATE device SET device_id = 'zz'")
    after = home.store.db.execute("SELECT page, mark FROM session_mark").fetchall()
    assert len(after) == len(before) and not set(after) & set(before)
    home.store.close()
