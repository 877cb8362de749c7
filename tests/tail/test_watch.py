"""When to look: events, polling, and a watcher that fails without ever leaving a dead tail."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from metricsd.config import Tail as Settings
from metricsd.spool import ensure_spool
from metricsd.watch import Watcher, filesystem_of, is_remote
from tests.e2e.support import homes, shared_line, wait_for

MOUNTINFO = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:40 / /home/ann rw,nosuid shared:9 - nfs4 server:/home rw
31 30 0:41 / /home/ann/local\\040disk rw - ext4 /dev/vdb1 rw
32 22 0:42 / /mnt/host rw - fuse.sshfs host:/ rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "remote"),
    [
        ("/var/lib", "ext4", False),
        ("/home/ann/.local/state", "nfs4", True),
        ("/home/ann/local disk/spool", "ext4", False),
        ("/home/annette", "ext4", False),
        ("/mnt/host/x", "fuse.sshfs", True),
    ],
)
def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(
    tmp_path: Path, path: str, kind: str, remote: bool
) -> None:
    """Events are not to be had where another machine may write."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTINFO)
    assert filesystem_of(path, mounts) == kind
    assert is_remote(kind) is remote
    assert filesystem_of(path, tmp_path / "missing") == ""


async def looks(watcher: Watcher, stop: asyncio.Event, count: int) -> int:
    """Return after `count` looks; fail when they do not come."""
    seen = 0
    async with asyncio.timeout(20):
        wakes = watcher.wakes(stop)
        async for _ in wakes:
            seen += 1
            if seen == count:
                stop.set()
    return seen


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), OSError(24, "Too many open files")])
async def test_a_watcher_that_cannot_be_made_is_replaced_by_polling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    """Out of inotify watches or instances: the tail goes on, and events are tried again later."""

    async def failing(*_: Any, **__: Any) -> AsyncIterator[set[Any]]:
        for error in (fault,):
            raise error
        yield set()

    ensure_spool(tmp_path)
    monkeypatch.setattr(watchfiles, "awatch", failing)
    assert await looks(Watcher(tmp_path, Settings(rescan_s=0.05)), asyncio.Event(), 5) >= 5


async def test_an_event_queue_that_lost_everything_is_made_good_by_the_rescan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overflow, or a file system without events: looks come all the same."""
    real = watchfiles.awatch

    async def deaf(*paths: Any, **options: Any) -> AsyncIterator[set[Any]]:
        async for changes in real(*paths, **options):
            if not changes:
                yield set()

    ensure_spool(tmp_path)
    monkeypatch.setattr(watchfiles, "awatch", deaf)
    assert await looks(Watcher(tmp_path, Settings(rescan_s=0.1)), asyncio.Event(), 4) >= 4


async def test_a_spool_that_cannot_be_made_again_at_once_is_made_later(tmp_path: Path) -> None:
    """Somebody removes the folder above at the same moment: the next look tries again."""
    home = tmp_path / "state"
    folder = home / "spool"
    ensure_spool(folder)
    stop = asyncio.Event()
    async with asyncio.timeout(20):
        seen = 0
        async for _ in Watcher(folder, Settings(rescan_s=0.05)).wakes(stop):
            seen += 1
            if seen == 2:
                home.rename(tmp_path / "away")
                home.write_text("a file in its place")
            if seen == 6:
                home.unlink()
            if seen > 6 and (folder / "new").is_dir():
                stop.set()
    assert (folder / "new").is_dir()


async def test_a_watch_that_is_replaced_does_not_stop_the_daemon(tmp_path: Path) -> None:
    """watchfiles sets the event it was given when it is closed; that must never be the daemon's own."""
    later = tmp_path / "not" / "there" / "yet"
    ensure_spool(tmp_path / "spool")
    stop = asyncio.Event()
    async with asyncio.timeout(20):
        seen = 0
        async for _ in Watcher(tmp_path / "spool", Settings(rescan_s=0.5, sources=(str(later),))).wakes(stop):
            assert not stop.is_set()
            seen += 1
            if seen == 2:
                # The watch has just begun and waits for its first event; now it is out of date.
                later.mkdir(parents=True)
            if seen == 4:
                break
    assert seen == 4
    assert not stop.is_set()


async def test_polling_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no event is asked for."""

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("events were asked for")

    monkeypatch.setattr(watchfiles, "awatch", forbidden)
    assert await looks(Watcher(tmp_path, Settings(watch="poll", rescan_s=0.05)), asyncio.Event(), 4) >= 4


def write(folder: Path, number: int, name: str = "events.jsonl") -> None:
    with (folder / name).open("a") as file:
        file.write(shared_line(number) + "\n")


@pytest.mark.timeout(120)
def test_a_daemon_lives_through_lost_folders_and_lost_descriptors(tmp_path: Path) -> None:
    """A source that appears later, a spool that is removed and one that is switched, and 300 files with few descriptors."""
    later = tmp_path / "later"
    with homes(tmp_path, "home", tail_sources=later, tail_rescan_s=0.2) as (home,):
        home.start_ready()
        assert home.daemon is not None
        later.mkdir()
        write(later, 1)
        wait_for(lambda: home.durations() == [1], "a folder that appeared later is read")
        home.spool.rename(tmp_path / "removed")
        wait_for(lambda: (home.spool / "new").is_dir(), "the spool is made again")
        write(home.spool, 2)
        wait_for(lambda: home.durations() == [1, 2], "a new spool in the place of the old is read")
        home.spool.rename(tmp_path / "moved")
        home.spool.symlink_to(tmp_path / "moved")
        write(home.spool, 3)
        wait_for(lambda: home.durations() == [1, 2, 3], "a linked spool is read")
        if not Path("/proc/self/fd").exists():
            pytest.skip("descriptors of a running process can be limited on Linux alone (prlimit)")
        pid = home.daemon.pid
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())) + 6, 1024))
        for number in range(100, 400):
            write(home.spool, number, f"{number}.jsonl")
        wait_for(lambda: len(home.durations()) == 303, "300 files are read with few descriptors")
        for number in range(400, 700):
            write(home.spool, number, f"{number - 300}.jsonl")
        wait_for(lambda: len(home.durations()) == 603, "and read on")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 1024))
        write(home.spool, 700)
        wait_for(lambda: home.durations() == [1, 2, 3, *range(100, 701)], "everything is there once")
        assert home.query("SELECT count(*) FROM quarantine") == [(0,)]
        assert home.end() == 0


@pytest.mark.timeout(120)
def test_a_daemon_that_polls_takes_everything_in(tmp_path: Path) -> None:
    """`[tail] watch = "poll"`, as on a network file system."""
    with homes(tmp_path, "home", tail_watch="poll") as (home,):
        home.start_ready()
        for number in range(3):
            write(home.spool, number)
            wait_for(lambda n=number: len(home.durations()) == n + 1, "the line is read")  # type: ignore[misc]
        assert home.end() == 0
