"""A store that is read-only, full, deleted or damaged under a living daemon, alone and together with the cloud.

Real processes, a real small disk, permissions that bind; time limits at a twentieth, full size in soak. While there is
no store, captures go straight to the cloud and stay in the spool; afterwards every event is in both exactly once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.failing import RECOVER_S, SHARE, Pace, Setup, now, setup
from tests.homes import until
from tests.keeping import FILES, pages_of, ruin

NOTICE_S = 2.0 + 5.0
"""At full size: a look every two seconds, and a dwell."""
DISK_BYTES = 32 * 1024 * 1024
LEFT_BYTES = 600 * 1024
"""What is left of the small disk: enough for a checkpoint and captures, and below the floor of a twentieth even after it."""


class Case(NamedTuple):
    """One fault of the store: how it begins and ends, and a word of the reason."""

    name: str
    begin: Callable[[Setup], None]
    end: Callable[[Setup], None]
    reason: str


def _files(run: Setup) -> list[Path]:
    path = run.device.paths.store
    return [file for suffix in FILES if (file := path.with_name(path.name + suffix)).exists()]


def _forbid(run: Setup) -> None:
    for file in _files(run):
        file.chmod(0o400)


def _allow(run: Setup) -> None:
    for file in _files(run):
        file.chmod(0o600)


def _mount_read_only(run: Setup) -> None:
    path = str(run.device.paths.store)
    done = subprocess.run(["mount", "--bind", path, path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"A READ-ONLY MOUNT IS NOT TESTED HERE: it needs root ({done.stderr.strip()})")
    subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)


def _unmount(run: Setup) -> None:
    subprocess.run(["umount", "-l", str(run.device.paths.store)], check=True)


FORBIDDEN = Case("permissions", _forbid, _allow, "right to write")
MOUNTED = Case("read-only mount", _mount_read_only, _unmount, "read-only")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """One cloud and one device for the faults that leave the store whole."""
    with setup(tmp_path_factory.mktemp("store-faults"), Pace(SHARE)) as made:
        yield made


def waiting(run: Setup) -> int:
    """Return how many captures wait in the spool."""
    return len(list((run.device.paths.spool / "new").iterdir()))


def play(run: Setup, case: Case) -> None:
    """Let the fault begin and end: captures go to the cloud meanwhile, and are everywhere once afterwards."""
    run.await_calm()
    run.capture(3)
    run.settle()
    run.await_calm()
    began = now()
    case.begin(run)
    run.await_mode("remote_only", run.pace.within(NOTICE_S), reason=case.reason, after=began)
    run.capture(4)
    until(lambda: run.cloud.numbers() == Counter(run.written), 30.0)
    assert waiting(run) == 4, "captures stay until the store has them"
    said = run.device.run("status")
    assert said.returncode == 3
    assert case.reason in said.stdout
    case.end(run)
    ended = now()
    run.await_mode("hybrid", run.pace.within(RECOVER_S), after=ended)
    run.settle()


@pytest.mark.parametrize("case", [FORBIDDEN, MOUNTED], ids=lambda case: case.name)
def test_a_store_that_may_not_be_written_is_bypassed(run: Setup, case: Case) -> None:
    """Noticed by the next look, before anything failed."""
    play(run, case)


def test_the_doubled_facts_of_two_hooks_stay_one(run: Setup) -> None:
    """A fact that two hooks capture while the store is away is one event in cloud and store."""
    run.await_calm()
    run.settle()
    _forbid(run)
    until(lambda: run.mode()[0] == "remote_only")
    (number,) = run.capture(1)
    until(lambda: run.cloud.numbers() == Counter(run.written), 30.0)
    run.written.pop()
    run.capture(1)
    _allow(run)
    run.settle()
    assert run.stored()[number] == 1


def test_a_restart_without_a_store_goes_on_as_before(run: Setup) -> None:
    """The daemon starts although its store cannot be opened, bypasses it again, and doubles nothing."""
    run.await_calm()
    run.settle()
    _forbid(run)
    until(lambda: run.mode()[0] == "remote_only", 20.0)
    run.capture(3)
    until(lambda: run.cloud.numbers() == Counter(run.written), 30.0)
    for how in (signal.SIGTERM, signal.SIGKILL):
        run.stop(how)
        run.capture(2)
        run.start()
        until(lambda: run.mode()[0] == "remote_only", 20.0)
        until(lambda: run.cloud.numbers() == Counter(run.written), 30.0)
    assert waiting(run) == 7
    _allow(run)
    run.settle()


@pytest.mark.parametrize("first", ["store", "cloud"])
def test_both_at_once_lose_nothing_whichever_comes_back_first(run: Setup, first: str) -> None:
    """Degraded, and the reason names both; hooks go on, captures wait."""
    run.await_calm()
    run.settle()
    run.await_calm()
    _forbid(run)
    run.cloud.kill()
    run.capture(3)
    until(lambda: run.mode()[0] == "degraded", 20.0)
    assert "right to write" in run.mode()[1]
    late = run.capture(3)
    assert waiting(run) >= 3, "what came after the store was gone waits"
    if first == "store":
        _allow(run)
        until(lambda: run.mode()[0] == "local_only", 20.0)
        until(lambda: waiting(run) == 0, 20.0)
        run.cloud.start()
    else:
        run.cloud.start()
        until(lambda: run.mode()[0] == "remote_only", 20.0)
        until(lambda: not Counter(late) - run.cloud.numbers(), 30.0)
        _allow(run)
    run.settle()


@pytest.mark.parametrize("gone", [("",), ("-wal", "-shm"), FILES], ids=lambda gone: "+".join(gone))
def test_deleted_under_the_daemon_the_store_is_put_back_whole(run: Setup, gone: tuple[str, ...]) -> None:
    """Nothing is lost, not even what was never synced: the system keeps an open file until the daemon has saved it."""
    run.await_calm()
    run.settle()
    run.cloud.kill()
    until(lambda: run.mode()[0] == "local_only", 20.0)
    run.capture(3)
    until(lambda: waiting(run) == 0, 20.0)
    path = run.device.paths.store
    for suffix in gone:
        path.with_name(path.name + suffix).unlink()
    until(lambda: path.exists() and run.device.status()["store"]["healthy"], 20.0)
    run.capture(2)
    run.cloud.start()
    run.settle()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Give a file system of a few megabytes."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"THE FULL DISK IS NOT TESTED HERE: mounting a tmpfs needs root ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(disk: Path, left: int) -> None:
    """Fill the disk but for `left` bytes."""
    found = os.statvfs(disk)
    size = max(found.f_bavail * found.f_frsize - left, 0)
    with (disk / "filler").open("ab") as stream, contextlib.suppress(OSError):
        stream.write(b"\0" * size)


@pytest.mark.parametrize("with_cloud", [True, False], ids=["cloud", "no cloud"])
def test_a_full_disk_is_bypassed_and_taken_up_again(tmp_path: Path, with_cloud: bool) -> None:
    """Below the floor nothing is written; to the last byte nothing breaks; with room again all is as it should be."""
    with small_disk(tmp_path / "disk") as disk, setup(tmp_path, Pace(SHARE), home=disk / "home") as run:
        run.await_calm()
        run.capture(3)
        run.settle()
        if not with_cloud:
            run.cloud.kill()
        began = now()
        _fill(disk, LEFT_BYTES)
        mode = "remote_only" if with_cloud else "degraded"
        run.await_mode(mode, run.pace.within(NOTICE_S) + (0 if with_cloud else 5.0), after=began)
        assert "free some disk space" in run.device.status()["store"]["reason"]
        run.capture(4)
        if with_cloud:
            until(lambda: run.cloud.numbers() == Counter(run.written), 30.0)
        _fill(disk, 0)
        done = subprocess.run(
            ["sh", "hooks/capture", "claude-code", "Stop", str(run.device.paths.spool)],
            input='{"session_id":"s-1"}', env=run.device.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert run.daemon is not None
        assert run.daemon.poll() is None
        (disk / "filler").unlink()
        for left in (run.device.paths.spool / "new").glob("Stop-*"):
            left.unlink()
        if not with_cloud:
            run.cloud.start()
        run.settle()


@pytest.mark.parametrize(
    ("how", "clean"), [("first page", False), ("every page", True), ("one page", False)], ids=lambda value: str(value)
)
def test_a_damaged_store_is_made_whole_from_all_that_is_left(tmp_path: Path, how: str, clean: bool) -> None:
    """What was synced comes back from the cloud, what waited in the spool is taken in; what is missing is said."""
    with setup(tmp_path, Pace(SHARE)) as run:
        run.await_calm()
        run.capture(12)
        run.settle()
        run.stop(signal.SIGTERM if clean else signal.SIGKILL)
        run.capture(3)
        path = run.device.paths.store
        if clean:
            # A clean stop leaves no WAL; what the last start read is all in the file.
            assert not path.with_name(path.name + "-wal").exists()
        with contextlib.closing(sqlite3.connect(path)) as db:
            root = int(db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'event'").fetchone()[0])
            if not clean:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        pages = {"first page": [0], "every page": list(range(pages_of(path))), "one page": [root - 1]}[how]
        for page in pages:
            ruin(path, page)
        if not clean:
            path.with_name(path.name + "-wal").write_bytes(b"\0" * 100)
        run.start()
        until(lambda: run.mode()[0] == "hybrid" and waiting(run) == 0, 40.0)

        def is_back() -> bool:
            run.device.run("sync", "--now")
            return run.stored() == Counter(run.written)

        until(is_back, 40.0)
        assert run.cloud.numbers() == Counter(run.written)
        kept = list((run.device.paths.state_dir / "damaged").iterdir())
        assert len(kept) == 1, "the damaged file is kept to be looked at"
        log = run.device.paths.log_file.read_text()
        [repaired] = [line for line in map(json.loads, log.splitlines()) if line["event"] == "store.repaired"]
        assert {"saved", "from_backup", "missing_max", "kept"} <= repaired.keys()
        assert run.device.status()["store"]["repair"]["kept"] == repaired["kept"]
        run.capture(2)
        run.settle()


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_the_promised_times_hold_at_full_size(tmp_path: Path) -> None:
    """A look every two seconds, a dwell of five, back within 15 s."""
    with setup(tmp_path, Pace(1.0)) as run:
        for case in (FORBIDDEN, MOUNTED):
            play(run, case)
