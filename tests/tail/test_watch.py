"""When to look: events, polling, and a watcher that fails without ever leaving a dead tail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import resource
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from metricsd.config import Tail as Settings
from metricsd.inotify import Inotify, reasons_to_look
from metricsd.spool import ensure_spool
from metricsd.watch import Watcher, by_inotify, by_watchfiles, filesystem_of, is_remote
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


SOURCES = [
    pytest.param(by_inotify, marks=pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")),
    pytest.param(by_watchfiles),
]
both_sources = pytest.mark.parametrize("events", SOURCES)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), OSError(24, "Too many open files")])
async def test_a_watcher_that_cannot_be_made_is_replaced_by_polling(tmp_path: Path, fault: OSError) -> None:
    """Out of inotify watches or instances: the tail goes on, and events are tried again later."""

    async def failing(*_: Any) -> AsyncGenerator[None, None]:
        for error in (fault,):
            raise error
        yield

    ensure_spool(tmp_path)
    assert await looks(Watcher(tmp_path, Settings(rescan_s=0.05), failing), asyncio.Event(), 5) >= 5


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_what_cannot_be_watched_is_an_error_that_names_it_and_keeps_nothing_open(tmp_path: Path) -> None:
    """A folder that is gone, one that is none, and no descriptor left."""
    before = set(os.listdir("/proc/self/fd"))
    (tmp_path / "file").touch()
    for place, number in ((tmp_path / "gone", errno.ENOENT), (tmp_path / "file", errno.ENOTDIR)):
        with pytest.raises(OSError, match=re.escape(str(place))) as caught:
            Inotify([str(tmp_path), str(place)])
        assert caught.value.errno == number
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Inotify([str(tmp_path)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) == before


@both_sources
async def test_an_event_is_a_look_long_before_the_rescan(tmp_path: Path, events: Any) -> None:
    """An append, a new file, a file moved in, and another one while the one before is still looked at."""
    ensure_spool(tmp_path)
    (tmp_path / "events.jsonl").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "moved").touch()
    happenings: list[Callable[[], object]] = [
        lambda: write(tmp_path, 1),
        lambda: (tmp_path / "new" / "a").write_text("a"),
        lambda: (tmp_path / "outside" / "moved").rename(tmp_path / "new" / "moved"),
        lambda: write(tmp_path, 2),
    ]
    stop = asyncio.Event()
    async with asyncio.timeout(20):
        seen = 0
        async for _ in Watcher(tmp_path, Settings(rescan_s=300, watch_step_ms=1), events).wakes(stop):
            seen += 1
            # The first two come with the start.
            if seen >= 2 and happenings:
                happenings.pop(0)()
            elif seen >= 2:
                stop.set()
                write(tmp_path, 3)


@both_sources
async def test_an_event_queue_that_lost_everything_is_made_good_by_the_rescan(tmp_path: Path, events: Any) -> None:
    """Overflow, or a file system without events: looks come all the same."""
    ensure_spool(tmp_path)

    def deaf(_: list[str], settings: Settings, stop: asyncio.Event) -> Any:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        return events([str(tmp_path / "elsewhere")], settings, stop)

    assert await looks(Watcher(tmp_path, Settings(rescan_s=0.1), deaf), asyncio.Event(), 4) >= 4


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
async def test_a_queue_that_overflowed_is_a_look_and_the_next_event_is_heard(tmp_path: Path) -> None:
    """More events than the kernel keeps, while nobody listens; then one more."""
    queued = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if queued > 100_000:
        pytest.skip("this system keeps so many events that an overflow is NOT tested here")
    files = [(tmp_path / name).open("ab", buffering=0) for name in "ab"]
    looking = reasons_to_look([str(tmp_path)], collect_s=0.0, rescan_s=300.0)
    async with asyncio.timeout(60), contextlib.aclosing(looking):
        await anext(looking)
        for _ in range(queued // 2 + 1):
            # The kernel joins an event with an equal one before it.
            for file in files:
                file.write(b"x")
        await anext(looking)
        files[0].write(b"x")
        await anext(looking)
    for file in files:
        file.close()


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


@both_sources
async def test_a_watch_that_is_replaced_does_not_stop_the_daemon(tmp_path: Path, events: Any) -> None:
    """watchfiles sets the event it was given when it is closed; that must never be the daemon's own."""
    later = tmp_path / "not" / "there" / "yet"
    ensure_spool(tmp_path / "spool")
    stop = asyncio.Event()
    async with asyncio.timeout(20):
        seen = 0
        settings = Settings(rescan_s=0.5, sources=(str(later),))
        async for _ in Watcher(tmp_path / "spool", settings, events).wakes(stop):
            assert not stop.is_set()
            seen += 1
            if seen == 2:
                # The watch has just begun and waits for its first event; now it is out of date.
                later.mkdir(parents=True)
            if seen == 4:
                break
    assert seen == 4
    assert not stop.is_set()


async def test_polling_can_be_chosen(tmp_path: Path) -> None:
    """Then no event is asked for."""

    def forbidden(*_: Any) -> Any:
        raise AssertionError("events were asked for")

    assert await looks(Watcher(tmp_path, Settings(watch="poll", rescan_s=0.05), forbidden), asyncio.Event(), 4) >= 4


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
