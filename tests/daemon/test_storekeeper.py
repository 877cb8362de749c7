"""What befalls the store of a living daemon is noticed, said with its kind, and mended; nothing is lost meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from metricsd.config import load_config
from metricsd.errors import BackupFailed, StoreCorrupt, StoreUnavailable
from metricsd.identity import load_identity
from metricsd.ids import EventId, capture_id
from metricsd.intake import open_intake
from metricsd.store import connection, outbox, salvage, state
from metricsd.store.backup import backup
from metricsd.store.recent import CallKey
from metricsd.storekeeper import StoreKeeper, TroubleKind
from tests.fakes import START_US
from tests.keeping import FILES, Kept, kept_home, ruin
from tests.users import NOBODY, as_nobody, let_nobody_reach

MIB = 1024 * 1024
UNSYNCED = "SELECT count(*) FROM event WHERE pos > (SELECT value FROM state WHERE key = 'stream_acked')"


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with kept_home(tmp_path / "home") as made:
        yield made


def kind_of(kept: Kept) -> TroubleKind | None:
    """Return the kind of the trouble that a look finds."""
    found = kept.keeper.check()
    return found.kind if found is not None else None


class TestFile:
    @pytest.mark.parametrize(
        "gone", [("",), ("-wal",), ("-shm", "-wal"), ("", "-wal"), FILES], ids=lambda gone: "+".join(gone) or "db"
    )
    def test_deleted_under_the_daemon_it_comes_back_as_it_was(self, kept: Kept, gone: tuple[str, ...]) -> None:
        """The system keeps an open file: every row, position and state is put back, and work goes on."""
        wanted = kept.stored(400)
        store = kept.keeper.store
        # Some of it is in the file, some in the WAL alone.
        store.checkpoint()
        wanted += kept.stored(50)
        before = store.db.execute("SELECT pos, id FROM event").fetchall()
        kept.remove(*gone)
        assert kept.keeper.check() is None
        assert kept.keeper.store is store
        assert store.db.execute("SELECT pos, id FROM event").fetchall() == before
        wanted += kept.stored(50)
        kept.keeper.close()
        assert kept.numbers() == Counter(wanted)
        kept.assert_sound()

    def test_the_whole_folder_deleted_is_made_again(self, kept: Kept) -> None:
        """Somebody removed everything: what was open comes back, and captures that come later are stored."""
        wanted = kept.stored(20)
        identity = kept.paths.identity.read_bytes()
        shutil.rmtree(kept.paths.state_dir)
        kept.keeper.check()
        (kept.paths.spool / "new").mkdir(parents=True, exist_ok=True)
        kept.paths.identity.write_bytes(identity)
        assert kept.keeper.check() is None
        wanted += kept.stored(5)
        assert kept.numbers() == Counter(wanted)

    def test_replaced_by_an_older_copy_both_are_joined(self, kept: Kept, tmp_path: Path) -> None:
        """Somebody puts a backup in place under the daemon: what it lacks is taken from the file that was open."""
        early = kept.stored(20)
        copy = backup(kept.keeper.store, kept.paths.backups, keep=1)
        assert copy is not None
        late = kept.stored(20)
        shutil.copy(copy, kept.paths.state_dir / "copy.db")
        (kept.paths.state_dir / "copy.db").replace(kept.paths.store)
        assert kept.keeper.check() is None
        assert kept.keeper.recovery is not None
        assert kept.numbers() == Counter(early + late)
        kept.assert_sound()

    def test_lost_before_a_start_the_backup_comes_back(self, kept: Kept) -> None:
        """Also when a command has made a new, blank store meanwhile."""
        wanted = kept.stored(20)
        backup(kept.keeper.store, kept.paths.backups, keep=1)
        for blank in (False, True):
            kept.keeper.close()
            kept.remove(*FILES)
            if blank:
                connection.Store.open(kept.paths.store).close()
            assert kept.restart().trouble is None
            assert kept.numbers() == Counter(wanted)
            kept.assert_sound()

    def test_damaged_while_open_it_is_repaired(self, kept: Kept) -> None:
        """A statement that meets the damage makes it known; the next look repairs, and the same object goes on."""
        wanted = kept.stored(300)
        store = kept.keeper.store
        store.checkpoint()
        page = store.db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'rollup'").fetchone()[0] - 1
        ruin(kept.paths.store, page)
        store.db.execute("PRAGMA cache_size = 0")
        with pytest.raises(StoreUnavailable, match="damaged"):
            kept.keeper.call(lambda: store.db.execute("SELECT sum(n) FROM rollup").fetchone())
        assert kept.keeper.trouble is not None
        assert kept.keeper.trouble.kind is TroubleKind.CORRUPT
        with pytest.raises(StoreUnavailable):
            kept.keeper.tick()
        assert kept.keeper.check() is None
        assert kept.keeper.store is store
        wanted += kept.stored(10)
        assert kept.numbers() == Counter(wanted)
        kept.assert_sound()

    def test_written_by_a_newer_version_it_is_left_alone(self, kept: Kept) -> None:
        """The reason says to upgrade; going back to the newer version finds everything."""
        kept.stored(5)
        kept.keeper.close()
        with closing(sqlite3.connect(kept.paths.store)) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            db.execute("PRAGMA user_version = 9001")
        found = kept.restart().trouble
        assert found is not None
        assert found.kind is TroubleKind.NEWER
        assert "upgrade metricsd" in found.reason
        with closing(sqlite3.connect(kept.paths.store)) as db:
            db.execute(f"PRAGMA user_version = {version}")
        assert kept.keeper.check() is None
        assert sum(kept.numbers().values()) == 5

    def test_held_by_another_program_it_waits(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """A write lock of somebody else's is a trouble with a name; it ends with the lock."""
        monkeypatch.setattr(connection, "BUSY_TIMEOUT_S", 0.05)
        kept.restart()
        kept.stored(5)
        with closing(sqlite3.connect(kept.paths.store, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = kept.stored(5)
            assert kind_of(kept) is TroubleKind.BUSY
            assert len(list((kept.paths.spool / "new").iterdir())) == len(waiting)
            other.execute("COMMIT")
        assert kind_of(kept) is None
        kept.take()
        assert sum(kept.numbers().values()) == 10

    def test_errors_of_a_shut_store_say_why(self, kept: Kept) -> None:
        """Whoever holds the store and uses it meanwhile gets our error, never one of the database's."""
        kept.keeper.store.shut(StoreCorrupt("it is damaged"))
        for use in (lambda: state.get_int(kept.keeper.store, "x"), lambda: kept.keeper.store.checkpoint()):
            with pytest.raises(StoreCorrupt, match="it is damaged"):
                use()


class TestPermission:
    @pytest.mark.parametrize("what", ["file", "folder"])
    def test_made_read_only_it_is_noticed_and_comes_back(self, tmp_path: Path, what: str) -> None:
        """As a user without root's rights: by the next look, before anything fails."""
        let_nobody_reach(tmp_path)
        with as_nobody(), kept_home(tmp_path / "home") as kept:
            wanted = kept.stored(5)
            target = kept.paths.store if what == "file" else kept.paths.state_dir
            mode = target.stat().st_mode
            target.chmod(0o400 if what == "file" else 0o500)
            found = kept.keeper.check()
            assert found is not None
            assert found.kind is TroubleKind.PERMISSION
            assert "right to write" in found.reason
            since = found.since_us
            wanted += kept.stored(5)
            kept.clock.advance(5)
            again = kept.keeper.check()
            assert again is not None
            assert again.since_us == since
            target.chmod(mode)
            assert kept.keeper.check() is None
            kept.take()
            assert kept.numbers() == Counter(wanted)
        if os.geteuid() == 0:
            assert (tmp_path / "home" / "state" / "store.db").stat().st_uid == NOBODY

    def test_not_writable_at_the_start_it_is_held_and_mended(self, tmp_path: Path) -> None:
        """The daemon lives on, and opens the store as soon as it may."""
        let_nobody_reach(tmp_path)
        with as_nobody(), kept_home(tmp_path / "home") as kept:
            wanted = kept.stored(5)
            kept.keeper.close()
            kept.paths.store.chmod(0o400)
            found = kept.restart().trouble
            assert found is not None
            assert found.kind is TroubleKind.PERMISSION
            wanted += kept.stored(5)
            kept.paths.store.chmod(0o600)
            assert kind_of(kept) is None
            kept.take()
            assert kept.numbers() == Counter(wanted)


class TestBeside:
    def test_a_quarantine_that_cannot_be_written_is_one_trouble_until_it_can(self, kept: Kept) -> None:
        """A round that fails beside the database holds the trouble: writing the database alone proves nothing."""
        wanted = kept.stored(3)
        folder = kept.paths.quarantine
        shutil.rmtree(folder, ignore_errors=True)
        folder.write_text("in the way")
        (kept.paths.spool / "new" / "Stop-1-1-0.jsonl").write_text("no json\n")
        wanted += kept.stored(3)
        assert kept.keeper.trouble is not None
        since = kept.keeper.trouble.since_us
        for _ in range(3):
            kept.clock.advance(2)
            found = kept.keeper.check()
            assert found is not None
            assert found.since_us == since
        folder.unlink()
        assert kind_of(kept) is None
        kept.take()
        assert kept.numbers() == Counter(wanted)
        assert not list((kept.paths.spool / "new").iterdir())

    def test_a_backup_that_cannot_be_made_is_no_trouble_of_the_store(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Work goes on, no half copy is left, and what copies there are stay."""
        kept.stored(3)
        first = backup(kept.keeper.store, kept.paths.backups, keep=2)
        kept.clock.advance(86_400)
        real = os.statvfs

        def statvfs(path: os.PathLike[str]) -> os.statvfs_result:
            found = list(real(path))
            found[4] = 1
            return os.statvfs_result(found)

        with monkeypatch.context() as patch, pytest.raises(BackupFailed, match="free some disk space"):
            patch.setattr(os, "statvfs", statvfs)
            kept.keeper.call(lambda: backup(kept.keeper.store, kept.paths.backups, keep=2))
        assert kept.keeper.trouble is None
        assert list(kept.paths.backups.iterdir()) == [first]

    def test_a_foreground_command_goes_on_from_a_repair_that_was_cut_off(self, kept: Kept) -> None:
        """`metricsd sync` without a daemon begins with the store that the backup and the damaged file give."""
        wanted = kept.stored(20)
        backup(kept.keeper.store, kept.paths.backups, keep=1)
        wanted += kept.stored(20)
        kept.keeper.close()
        salvage.set_aside(kept.paths, kept.clock)
        config = load_config(kept.paths, {}, system_file=Path("/none"))
        open_intake(kept.paths, config, kept.clock).store.close()
        assert kept.numbers() == Counter(wanted)
        kept.assert_sound()


class TestLimits:
    def test_the_wal_is_emptied_and_a_reader_that_holds_it_is_named(self, kept: Kept) -> None:
        """The WAL stays near its limit; with a reader in the way nothing is taken in beyond a factor of it."""
        kept.set(wal_bytes_max=64 * 1024)
        wal = connection.wal_of(kept.paths.store)
        for _ in range(10):
            kept.stored(200)
            assert kind_of(kept) is None
            assert wal.stat().st_size <= 64 * 1024
        with closing(sqlite3.connect(kept.paths.store, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM event").fetchone()
            kind = None
            for _ in range(20):
                kept.stored(200)
                kind = kind_of(kept)
                if kind is not None:
                    break
            assert kind is TroubleKind.BUSY
            size = wal.stat().st_size
            kept.stored(200)
            assert wal.stat().st_size == size
            reader.execute("COMMIT")
        assert kind_of(kept) is None
        kept.take()
        assert sum(kept.numbers().values()) == len(kept.numbers())
        kept.assert_sound()

    def test_a_store_at_its_limit_keeps_what_nobody_else_has(self, kept: Kept) -> None:
        """Without a cloud nothing is dropped: captures wait, and come in when the limit is raised."""
        kept.set(bytes_max=MIB)
        kept.keeper.store.limit(MIB)
        wanted: list[int] = []
        for _ in range(60):
            wanted += kept.stored(500)
            kept.clock.advance(86_400)
            if kind_of(kept) is not None:
                break
        assert kept.keeper.trouble is not None
        assert kept.keeper.trouble.kind is TroubleKind.QUOTA
        assert "store.bytes_max" in kept.keeper.trouble.reason
        assert kept.paths.store.stat().st_size <= MIB
        for _ in range(3):
            kept.keeper.check()
            assert kept.keeper.trouble.kind is TroubleKind.QUOTA
        stored, waiting = sum(kept.numbers().values()), len(list((kept.paths.spool / "new").iterdir()))
        assert stored + waiting == len(wanted)
        kept.set(bytes_max=8 * MIB)
        kept.keeper.store.limit(8 * MIB)
        assert kind_of(kept) is None
        kept.take()
        assert kept.numbers() == Counter(wanted)

    def test_a_store_at_its_limit_drops_the_oldest_that_the_cloud_has(self, kept: Kept) -> None:
        """Room is made before it is full; totals stay, nothing unsynced and nothing of the last day goes."""
        kept.set(bytes_max=MIB)
        kept.keeper.store.limit(MIB)
        kept.paths.credentials.parent.mkdir(parents=True, exist_ok=True)
        kept.paths.credentials.write_text("{}")
        written = 0
        for _ in range(12):
            written += len(kept.stored(1000))
            kept.clock.advance(86_400)
            store = kept.keeper.store
            with store.transaction():
                if outbox.find(store) is None:
                    outbox.resume(store, "dev-1", "cloud")
                state.put(store, "stream_acked", state.get_int(store, "last_pos") - 100)
            assert kind_of(kept) is None
            assert store.db.execute(UNSYNCED).fetchone() == (100,)
        stored = sum(kept.numbers().values())
        assert 100 <= stored < written
        with closing(sqlite3.connect(kept.paths.store)) as db:
            assert db.execute("SELECT sum(n) FROM rollup").fetchone() == (written,)

    def test_a_disk_below_the_floor_is_left_alone_until_room_is_back(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The floor is a trouble with both figures; the store goes on only when there is room to spare."""
        kept.stored(5)
        free = [10 * MIB]
        real = os.statvfs

        def statvfs(path: os.PathLike[str]) -> os.statvfs_result:
            found = list(real(path))
            found[1], found[2], found[4] = 1, 100_000 * MIB, free[0]
            return os.statvfs_result(found)

        monkeypatch.setattr(os, "statvfs", statvfs)
        found = kept.keeper.check()
        assert found is not None
        assert found.kind is TroubleKind.FULL
        assert "10 MiB" in found.reason
        assert "free some disk space" in found.reason
        free[0] = 101 * MIB
        assert kind_of(kept) is TroubleKind.FULL, "at the brink it must not switch to and fro"
        free[0] = 120 * MIB
        assert kind_of(kept) is None


def test_of_two_captures_the_one_that_went_to_the_cloud_is_kept(kept: Kept) -> None:
    """Whichever the tail meets first: the other one would be a second event in the cloud."""
    new = kept.paths.spool / "new"
    ids = []
    for number, age in ((1, 0), (2, 1)):
        path = new / f"PostToolUse-{number}-1-0.jsonl"
        payload = {"session_id": "s", "tool_name": "Bash", "tool_use_id": "toolu_twin", "duration_ms": number}
        second = START_US // 1_000_000
        path.write_text(
            json.dumps({"v": 1, "s": second, "app": "claude-code", "event": "PostToolUse", "payload": payload}) + "\n"
        )
        os.utime(path, ns=(0, (START_US + age) * 1000))
        ids.append(capture_id(second, path.name, path.read_bytes(), load_identity(kept.paths).installation_key))
    kept.keeper.close()
    calls: dict[CallKey, EventId] = {("claude-code", "s", "toolu_twin", "PostToolUse"): ids[1]}
    config = load_config(kept.paths, {}, system_file=Path("/none"))
    kept.keeper = StoreKeeper(kept.paths, config, kept.clock, sent_calls=lambda: calls)
    kept.keeper.open()
    kept.take()
    assert kept.keeper.store.db.execute("SELECT id FROM event").fetchall() == [(ids[1],)]
    assert not list(new.iterdir())


def test_a_look_at_a_well_store_costs_next_to_nothing(kept: Kept) -> None:
    """No file is opened, nothing is written: it is done every two seconds for ever."""
    kept.stored(5)
    before = {file: file.stat().st_mtime_ns for file in kept.paths.state_dir.iterdir() if file.is_file()}
    for _ in range(100):
        assert kept.keeper.check() is None
    assert {file: file.stat().st_mtime_ns for file in kept.paths.state_dir.iterdir() if file.is_file()} == before
