"""A store that was damaged, lost or replaced comes back with all that is left of it, once, and says what is missing."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metricsd.cli.status import gather
from metricsd.cli.status_text import render
from metricsd.config import load_config
from metricsd.errors import StoreUnavailable
from metricsd.store import records, salvage
from metricsd.store.backup import backup
from metricsd.store.calendar import days_in
from metricsd.store.connection import Store
from metricsd.store.damaged import COPIED, LEFT_OUT, Damaged
from metricsd.store.events import Identified
from metricsd.store.retention import fold
from tests.analytics.support import item, put
from tests.fakes import START_US, FakeClock
from tests.keeping import Kept, kept_home, pages_of, ruin

EVENTS = 400
DAY_US = 86_400_000_000
FROM_EVENTS = {
    "event", "session", "event_type", "term", "device", "session_counters", "rollup", "day_total", "hour_total",
    "folded_batch", "retracted_batch", "retracted_total", "source", "state", "day_mark", "session_mark",
}  # fmt: skip
"""Rebuilt row by row as events come in, read again (source), or taken over one by one (state)."""
HOWS = (b"\xa5", b"\0", b"\x0d\0\0\1")
"""Garbage, zeros, and what looks like a page of a table."""


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with kept_home(tmp_path / "home") as made:
        yield made


def reopen_damaged(kept: Kept, template: Path, page: int, how: bytes = b"\xa5") -> None:
    """Start over from a copy of the home with one page ruined, and let everything be read once."""
    kept.keeper.close()
    home = kept.paths.state_dir
    shutil.rmtree(home)
    shutil.copytree(template, home)
    ruin(kept.paths.store, page, how=how)
    # What a kill leaves: the next start looks at the whole structure.
    kept.paths.store.with_name("store.db-wal").write_bytes(b"\0")
    kept.restart()
    kept.take()


def closed_copy(kept: Kept, folder: Path) -> Path:
    """Close, copy the home's state, open again; return the copy."""
    kept.keeper.close()
    shutil.copytree(kept.paths.state_dir, folder)
    kept.restart()
    return folder


@pytest.mark.parametrize("how", HOWS, ids=["garbage", "zeros", "a page's head"])
def test_whatever_page_is_bad_the_rest_comes_back_once_and_the_gap_is_told(
    kept: Kept, tmp_path: Path, how: bytes
) -> None:
    """Each page of the file in turn, without a backup: what is lost is at most what is said to be missing."""
    wanted = Counter(kept.stored(EVENTS))
    template = closed_copy(kept, tmp_path / "template")
    with closing(sqlite3.connect(template / "store.db")) as db:
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'event'").fetchone()[0]
    repaired = most = 0
    for page in range(pages_of(template / "store.db")):
        reopen_damaged(kept, template, page, how)
        kept.assert_sound()
        found = kept.numbers()
        assert not found - wanted, page
        lost = wanted.total() - found.total()
        recovery = kept.keeper.recovery
        if recovery is None:
            assert not lost, page
            continue
        repaired += 1
        assert recovery.missing_max is None or recovery.missing_max >= lost, page
        assert recovery.kept
        if recovery.missing_max is not None:
            most = max(most, lost)
            # A bad page costs the rows on it, not the table; only the root leads to all of them.
            assert lost < EVENTS // 2 or page == root - 1, page
    assert repaired > 5, "most pages must be seen to be bad, or this test proves nothing"
    assert most > 0


def test_with_a_backup_only_what_came_after_it_can_be_missing(kept: Kept, tmp_path: Path) -> None:
    """The first page, without which SQLite reads nothing at all."""
    early = kept.stored(EVENTS)
    backup(kept.keeper.store, kept.paths.backups, keep=2)
    late = kept.stored(50)
    template = closed_copy(kept, tmp_path / "template")
    reopen_damaged(kept, template, 0)
    kept.assert_sound()
    recovery = kept.keeper.recovery
    assert recovery is not None
    assert recovery.backup.startswith("store-")
    assert recovery.from_backup == EVENTS
    assert recovery.missing_max is None
    assert kept.numbers() == Counter(early)
    # Any other page: the backup and what can be read of the later events.
    for page in range(1, pages_of(template / "store.db")):
        reopen_damaged(kept, template, page)
        kept.assert_sound()
        found = kept.numbers()
        assert not Counter(early) - found, page
        assert not found - Counter(early + late), page


def test_totals_of_what_retention_dropped_come_back_once(tmp_path: Path) -> None:
    """Also of a day of which some events are still there, because they came late and the cloud has them not yet."""

    def totals(store: Store) -> list[list[tuple[int, ...]]]:
        return [
            store.db.execute("SELECT day, sum(n), sum(failed), sum(duration_ms) FROM rollup GROUP BY day").fetchall(),
            store.db.execute(
                "SELECT day, sum(n), sum(failed), sum(duration_ms) FROM day_total GROUP BY day"
            ).fetchall(),
            store.db.execute("SELECT day, hour, sum(n), sum(failed) FROM hour_total GROUP BY day, hour").fetchall(),
        ]

    def made(number: int, days_ago: int) -> Identified:
        return item(number, session="s", duration_ms=number, at=START_US - days_ago * DAY_US)

    clock = FakeClock()
    with closing(Store.open(tmp_path / "old.db", clock=clock)) as old:
        old.days = days_in("UTC")
        put(old, [made(1, 5), made(2, 5), made(3, 3), made(4, 0)])
        put(old, [made(5, 5), made(6, 4)])
        assert fold(old, days=1, synced_through=3) == 3
        wanted = totals(old)
        # The last day that retention has touched comes back by its events alone, and here it has none left.
        last = old.days.of(START_US - 3 * DAY_US)
    with closing(Store.open(tmp_path / "new.db", clock=clock)) as new:
        new.days = days_in("UTC")
        with closing(Damaged(tmp_path / "old.db")) as damaged:
            assert damaged.pour_into(new).rows == 3
        assert totals(new) == [[row for row in table if row[0] != last] for table in wanted]


def test_files_that_others_write_are_read_again(kept: Kept, tmp_path: Path) -> None:
    """What lies in a shared file is not lost with the store."""
    shared = kept.share(100)
    kept.take()
    reopen_damaged(kept, closed_copy(kept, tmp_path / "template"), 0)
    assert kept.numbers() == Counter(shared)
    kept.assert_sound()


def test_a_damaged_backup_is_passed_over(kept: Kept, tmp_path: Path) -> None:
    """The one before it is taken."""
    early = kept.stored(20)
    backup(kept.keeper.store, kept.paths.backups, keep=2)
    kept.clock.advance(86_400)
    kept.stored(20)
    newest = backup(kept.keeper.store, kept.paths.backups, keep=2)
    assert newest is not None
    ruin(newest, 0)
    reopen_damaged(kept, closed_copy(kept, tmp_path / "template"), 0)
    assert kept.numbers() == Counter(early)


def test_edits_by_hand_come_out_of_the_damaged_file(kept: Kept, tmp_path: Path) -> None:
    """The backup has an older version, the damaged file the newer one."""
    kept.stored(EVENTS)
    store = kept.keeper.store
    with store.transaction():
        records.edit(store, "session", "claude-code/s", {"description": "old", "tags": ["a"]})
    backup(store, kept.paths.backups, keep=2)
    with store.transaction():
        records.edit(store, "session", "claude-code/s", {"description": "new"})
    template = closed_copy(kept, tmp_path / "template")
    with closing(sqlite3.connect(template / "store.db")) as db:
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'rollup'").fetchone()[0]
    reopen_damaged(kept, template, root - 1)
    assert kept.keeper.recovery is not None
    record = records.get(kept.keeper.store, "session", "claude-code/s")
    assert record is not None
    assert record.version.fields == {"description": "new", "tags": ["a"]}


@pytest.mark.parametrize("step", ["repair", "_pour", "finish", "_mark_read"])
def test_a_repair_that_is_cut_off_at_any_step_is_finished_by_the_next_start(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Nothing is lost between moving the file aside and putting the new one in its place."""
    early = kept.stored(EVENTS)
    backup(kept.keeper.store, kept.paths.backups, keep=2)
    late = kept.stored(50)
    template = closed_copy(kept, tmp_path / "template")
    with closing(sqlite3.connect(template / "store.db")) as db:
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'rollup'").fetchone()[0]
    with monkeypatch.context() as patch:
        calls = 0
        real = getattr(salvage, step)

        def cut(*args: object) -> object:
            nonlocal calls
            calls += 1
            if step == "finish" and calls == 1:
                return real(*args)
            raise StoreUnavailable("cut off")

        patch.setattr(salvage, step, cut)
        reopen_damaged(kept, template, root - 1)
        assert calls
        cut_off = kept.keeper.trouble
        assert cut_off is not None
    again = kept.restart()
    assert again.trouble is None
    kept.assert_sound()
    assert kept.numbers() == Counter(early + late)
    assert not list((kept.paths.state_dir / "damaged").glob("*.unread.db"))


def test_only_the_newest_damaged_files_are_kept(kept: Kept, tmp_path: Path) -> None:
    """Repairs do not fill the disk."""
    wanted = kept.stored(EVENTS)
    for _ in range(salvage.KEEP + 2):
        kept.clock.advance(60)
        kept.keeper.close()
        with closing(sqlite3.connect(kept.paths.store)) as db:
            root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'rollup'").fetchone()[0]
        ruin(kept.paths.store, root - 1)
        kept.paths.store.with_name("store.db-wal").write_bytes(b"\0")
        kept.restart()
        assert kept.keeper.recovery is not None
    assert len(list((kept.paths.state_dir / "damaged").iterdir())) == salvage.KEEP
    assert kept.numbers() == Counter(wanted)
    kept.assert_sound()


def test_status_says_what_was_repaired_and_what_may_be_missing(kept: Kept, tmp_path: Path) -> None:
    """A gap is never silent: with and without a figure, and for as long as it is news."""

    def told() -> str:
        found = gather(kept.paths, load_config(kept.paths, {}, system_file=Path("/none")))
        return render(found, colour=False, encoding="ascii", now=datetime.fromtimestamp(START_US / 1e6 + 60, UTC))

    assert "repair" not in told()
    kept.stored(EVENTS)
    template = closed_copy(kept, tmp_path / "template")
    with closing(sqlite3.connect(template / "store.db")) as db:
        roots = dict(db.execute("SELECT name, rootpage - 1 FROM sqlite_schema"))
    reopen_damaged(kept, template, roots["rollup"])
    assert f"{EVENTS} events from the damaged file; nothing is missing" in told()
    reopen_damaged(kept, template, roots["event"])
    assert f"at most {EVENTS} events may be missing" in told()
    reopen_damaged(kept, template, 0)
    assert "an unknown number may be missing" in told()
    assert str(kept.paths.state_dir / "damaged") in told()
    kept.paths.repair.write_text("no json")
    assert "repair" not in told()


def test_no_table_is_forgotten(kept: Kept) -> None:
    """A new table is copied, follows from the events, or is left out on purpose: whoever adds one decides."""
    tables = {row[0] for row in kept.keeper.store.db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert {name for name in tables if not name.startswith("sqlite_")} == FROM_EVENTS | COPIED.keys() | LEFT_OUT
