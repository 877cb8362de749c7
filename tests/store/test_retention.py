"""Retention, backups and disk errors of the store."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metricsd.chores import Chores
from metricsd.config import Paths, load_config
from metricsd.errors import StoreCorrupt, StoreUnavailable
from metricsd.schedule import Chore, Schedule
from metricsd.store import quarantine, state
from metricsd.store.backup import backup, newest_backup
from metricsd.store.connection import Store
from metricsd.store.events import read_own
from metricsd.store.ingest import Ingest
from metricsd.store.retention import fold, goes_on
from metricsd.storekeeper import StoreKeeper
from tests.fakes import FakeClock
from tests.samples import make_item
from tests.users import NOBODY, as_nobody

DAY_S = 86400


def rollup_n(store: Store) -> int:
    return int(store.db.execute("SELECT coalesce(sum(n), 0) FROM rollup").fetchone()[0])


class TestFold:
    def filled(self, store: Store, clock: FakeClock) -> Ingest:
        ingest = Ingest(store)
        ingest.take([make_item(n, at=clock.now_us() + n) for n in range(10)])
        clock.advance(40 * DAY_S)
        ingest.take([make_item(n, at=clock.now_us() + n) for n in range(10, 15)])
        return ingest

    def test_nothing_is_dropped_by_default(self, store: Store, clock: FakeClock) -> None:
        """retention_days = 0 keeps everything."""
        self.filled(store, clock)
        assert fold(store, days=0, synced_through=None) == 0
        assert len(read_own(store, 0, 100)) == 15

    def test_old_rows_go_and_totals_stay(self, store: Store, clock: FakeClock) -> None:
        """The daily totals already count what is dropped; live_events counts rows."""
        self.filled(store, clock)
        assert fold(store, days=30, synced_through=None) == 10
        assert len(read_own(store, 0, 100)) == 5
        assert rollup_n(store) == 15
        assert state.get_int(store, "live_events") == 5

    def test_what_the_cloud_does_not_have_is_kept(self, store: Store, clock: FakeClock) -> None:
        """A laptop that was offline for months loses nothing to retention."""
        self.filled(store, clock)
        assert fold(store, days=30, synced_through=4) == 4
        assert [pos for pos, _, _ in read_own(store, 0, 100)] == list(range(5, 16))

    def test_a_line_older_than_the_fold_is_refused_not_counted_twice(self, store: Store, clock: FakeClock) -> None:
        """Whether it was counted can no longer be told, so it goes to quarantine as too_old."""
        ingest = self.filled(store, clock)
        fold(store, days=30, synced_through=None)
        taken = ingest.take([make_item(0, at=clock.now_us() - 40 * DAY_S * 1_000_000)])
        assert (taken.added, taken.rejected) == (0, 1)
        assert [entry.reason for entry in quarantine.list_open(store)] == ["too_old"]
        assert rollup_n(store) == 15

    def test_the_horizon_never_goes_back(self, store: Store, clock: FakeClock) -> None:
        """A clock set back, or a longer retention later, does not bring refused lines in again."""
        self.filled(store, clock)
        fold(store, days=30, synced_through=None)
        before = state.get_int(store, "fold_before_us")
        clock.jump(-20 * DAY_S)
        fold(store, days=30, synced_through=None)
        assert state.get_int(store, "fold_before_us") == before

    def test_a_clock_that_was_years_ahead_refuses_nothing_afterwards(self, store: Store, clock: FakeClock) -> None:
        """What was dropped by it is not taken in again, and what happens after the clock was set right is."""
        ingest = self.filled(store, clock)
        clock.jump(10 * 365 * DAY_S)
        assert fold(store, days=30, synced_through=None) == 15
        clock.jump(-10 * 365 * DAY_S)
        clock.advance(60)
        assert ingest.take([make_item(20, at=clock.now_us())])[:1] == (1,)
        taken = ingest.take([make_item(14, at=clock.now_us() - 60_000_000 + 14)])
        assert (taken.added, taken.rejected) == (0, 1), "the newest row that went stays counted once"
        assert rollup_n(store) == 16


class TestClock:
    def test_after_a_leap_nothing_goes_by_age_before_the_next_look(self, store: Store, clock: FakeClock) -> None:
        """Set ahead by years, or switched off for weeks: one more look, an hour later, and not after a set-back."""
        assert not goes_on(store), "nobody looked before"
        for advance_s, wanted in ((3600, True), (5 * DAY_S, True), (8 * DAY_S, False), (3600, True)):
            clock.advance(advance_s)
            assert goes_on(store) is wanted, advance_s
        for jump_s, wanted in ((3650 * DAY_S, False), (-3650 * DAY_S, False), (3600, True)):
            clock.jump(jump_s)
            assert goes_on(store) is wanted, jump_s

    def test_a_loser_outlives_an_hour_of_a_wrong_clock(self, home: Paths, clock: FakeClock) -> None:
        """The chore itself asks: what could be restored for 90 days is still there when the clock is right again."""
        config = load_config(home, {}, system_file=Path("/none"))
        keeper = StoreKeeper(home, config, clock)
        keeper.open()
        store = keeper.store
        store.db.execute(
            "INSERT INTO conflict_log (at, type, record_id, local, remote, remote_rev, state) "
            "VALUES (?, 'session', 's', '{}', '{}', '1-x', 'resolved')",
            (clock.now_us(),),
        )

        async def run(work: Callable[[], int]) -> int:
            return work()

        chores = Chores(home, config, keeper, Schedule(config, lambda: None), run)
        counted = "SELECT count(*) FROM conflict_log"
        for step_s, left in ((3600, 1), (3600, 1), (3650 * DAY_S, 1), (-3650 * DAY_S, 1), (3600, 1), (100 * DAY_S, 1)):
            clock.jump(step_s)
            asyncio.run(chores.do(Chore.RETENTION))
            assert store.db.execute(counted).fetchone() == (left,), step_s
        clock.jump(3600)
        asyncio.run(chores.do(Chore.RETENTION))
        assert store.db.execute(counted).fetchone() == (0,), "a hundred days later it goes"
        keeper.close()


class TestBackup:
    def test_a_backup_is_a_whole_private_database(self, store: Store, tmp_path: Path) -> None:
        """It opens as a store and holds the events."""
        Ingest(store).take([make_item(n) for n in range(3)])
        copy = backup(store, tmp_path / "b", keep=2)
        assert copy is not None
        assert copy.stat().st_mode & 0o777 == 0o600
        other = Store.open(copy)
        assert len(read_own(other, 0, 10)) == 3
        other.close()

    def test_the_newest_two_are_kept(self, store: Store, clock: FakeClock, tmp_path: Path) -> None:
        """One a day, older ones go, and nothing half-written stays."""
        for _ in range(4):
            newest = backup(store, tmp_path / "b", keep=2)
            clock.advance(DAY_S)
        assert newest_backup(tmp_path / "b") == newest
        assert len(list((tmp_path / "b").iterdir())) == 2

    def test_zero_switches_backups_off(self, store: Store, tmp_path: Path) -> None:
        """No folder is made either."""
        assert backup(store, tmp_path / "b", keep=0) is None
        assert not (tmp_path / "b").exists()


class TestDiskErrors:
    def test_a_damaged_file_is_named_with_what_to_do(self, tmp_path: Path) -> None:
        """Not a traceback, and the file is left as it is."""
        path = tmp_path / "store.db"
        path.write_bytes(b"this is no database" * 100)
        with pytest.raises(StoreCorrupt, match=r"store\.db is damaged .*metricsd up"):
            Store.open(path)
        assert path.read_bytes().startswith(b"this is no database")

    def test_a_store_that_another_program_holds_is_unavailable_for_now(self, store: Store) -> None:
        """Retryable, nothing is taken."""
        store.db.execute("PRAGMA busy_timeout = 10")
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="another program holds it"):
            Ingest(store).take([make_item(0)])
        other.execute("ROLLBACK")
        other.close()
        assert Ingest(store).take([make_item(0)]).added == 1

    def test_a_folder_without_permission_is_named(self) -> None:
        """The sentence says what to check. Root writes everywhere, so root becomes nobody for the attempt."""
        with tempfile.TemporaryDirectory() as folder:
            locked = Path(folder) / "locked"
            locked.mkdir()
            if os.geteuid() == 0:
                Path(folder).chmod(0o711)
                os.chown(locked, NOBODY, NOBODY)
            locked.chmod(0o500)
            with as_nobody(), pytest.raises(StoreUnavailable, match="permissions"):
                Store.open(locked / "store.db")
            locked.chmod(0o700)


class TestTwins:
    def test_the_same_call_captured_twice_is_stored_once_and_counted(self, store: Store) -> None:
        """Settings and plug-in both installed: other ids, one natural key."""
        ingest = Ingest(store)
        first, second = make_item(0, call="toolu_1"), make_item(1, call="toolu_1")
        assert ingest.take([first]).added == 1
        assert ingest.take([second])[:4] == (0, 0, 1, 0)
        assert ingest.take([first])[:4] == (0, 1, 0, 0), "the same event again is no twin: its id is known"
        assert state.get_int(store, "twins_dropped") == 1

    def test_twins_are_known_after_a_restart(self, store: Store) -> None:
        """The window is rebuilt from the table."""
        Ingest(store).take([make_item(0, call="toolu_1")])
        assert Ingest(store).take([make_item(1, call="toolu_1")]).twins == 1

    def test_a_rolled_back_event_is_not_taken_for_a_twin(self, store: Store) -> None:
        """After a failed commit the same fact must still come in."""
        ingest = Ingest(store)
        with pytest.raises(UnicodeEncodeError):
            ingest.take([make_item(0, call="toolu_1"), make_item(1, tool="\ud800")])
        assert ingest.take([make_item(2, call="toolu_1")]).added == 1
