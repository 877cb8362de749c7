"""Following files whose names, rights and handles change: what a real daemon cannot be made to meet at will."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metricsd import growing, shared
from metricsd.clock import SystemClock
from metricsd.config import Tail as Settings
from metricsd.growing import rotated_place
from metricsd.store import quarantine, sources
from tests.fakes import FakeClock
from tests.tail.conftest import Rig
from tests.users import NOBODY, as_nobody


@pytest.mark.parametrize(("padding", "twin"), [(100, False), (5000, False), (100, True)])
def test_a_rewrite_behind_the_head_that_ends_alike_is_read(rig: Rig, padding: int, twin: bool) -> None:
    """Lines of one length that end alike, short and long, and a last line that stays the very same."""

    def some(first: int, last: int) -> bytes:
        return b"".join(
            rig.line(n, payload={"session_id": "s", "tool_name": "Read", "duration_ms": n, "z": "x" * padding})
            for n in range(first, last)
        )

    end = some(99, 100) if twin else b""
    path = rig.shared(some(10, 20) + end)
    rig.tick()
    kept = len(some(10, 16))
    assert kept > growing.HEAD_BYTES
    with path.open("r+b") as file:
        file.truncate(kept)
        file.seek(kept)
        file.write(some(30, 34) + end + some(34, 60))
    rig.clock.advance(10)
    rig.tick()
    assert sorted(rig.durations) == [*range(10, 20), *range(30, 60), *([99] if twin else [])]


def lines(rig: Rig, first: int, last: int) -> bytes:
    return b"".join(rig.line(n) for n in range(first, last))


@contextmanager
def no_more_descriptors(monkeypatch: pytest.MonkeyPatch, suffix: str = ".jsonl") -> Iterator[list[str]]:
    """Let every opening of a file fail as it does when the process has no descriptor left."""
    refused: list[str] = []
    real = os.open

    def failing(name: str, *rest: int, **more: int) -> int:
        if str(name).endswith(suffix):
            refused.append(str(name))
            raise OSError(errno.EMFILE, "Too many open files")
        return real(name, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        yield refused


def test_running_out_of_descriptors_is_not_a_deletion(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is forgotten, nothing is read twice, and what could not be read is read later."""
    for n in range(5):
        rig.shared(rig.line(n), f"{n}.jsonl")
    rig.tick()
    rig.restart()
    for n in range(5):
        rig.shared(rig.line(10 + n), f"{n}.jsonl")
    with no_more_descriptors(monkeypatch) as refused:
        assert rig.tick() == (0, 0, 0, False)
    assert refused
    assert rig.tick() == (5, 0, 0, False)
    assert len(sources.load_all(rig.store)) == 5


def test_kept_handles_are_given_up_when_descriptors_are_short(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle kept for a rotation that may never come does not keep another file from being read."""
    rig.shared(rig.line(0), "a.jsonl")
    rig.tick()
    real, open_now = os.open, {"count": 1}

    def limited(name: str, *rest: int, **more: int) -> int:
        if str(name).endswith("b.jsonl") and open_now["count"]:
            open_now["count"] -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return real(name, *rest, **more)

    rig.shared(rig.line(1), "b.jsonl")
    monkeypatch.setattr(os, "open", limited)
    assert rig.tick().added == 1


@contextmanager
def files_limited(number: int) -> Iterator[None]:
    """Let no file of this process have this number or a higher one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
@pytest.mark.parametrize("spare", range(1, 9))
def test_kept_handles_never_use_up_the_last_descriptor(rig: Rig, spare: int) -> None:
    """However many there are: the next look lists the folders, reads captures, and reads files, old and new."""
    # Numbers are limited, not files: what is free below the limit is what is meant to be.
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))
    held = [os.dup(0)]
    while held[-1] < highest:
        held.append(os.dup(0))
    limit = held[-1] + 1 + spare
    for n in range(10):
        rig.shared(rig.line(n), f"{n}.jsonl")
    with files_limited(limit):
        rig.tick()
    rig.capture(10)
    for n in range(11, 30):
        rig.shared(rig.line(n), f"{n}.jsonl")
    with files_limited(limit):
        for _ in range(3):
            rig.tick()
    for each in held:
        os.close(each)
    assert rig.durations == list(range(30))


def test_handles_are_bounded_with_many_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 files that all grow never hold 300 descriptors."""
    monkeypatch.setattr(rig.tail._shared, "_handles_max", 20)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for n in range(300):
        rig.shared(rig.line(n), f"{n:03}.jsonl")
    assert rig.tick().added == 300
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 25


def test_a_folder_that_cannot_be_listed_loses_no_checkpoint(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the folder itself: what cannot be seen is not gone."""
    rig.shared(rig.line(0))
    rig.tick()

    def failing(_: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        rig.capture(1)
        assert rig.tick() == (0, 0, 0, False)
    rig.shared(rig.line(2))
    assert rig.tick() == (2, 0, 0, False)


def test_permission_lost_and_restored_loses_and_doubles_nothing(clock: FakeClock) -> None:
    """Lines that were written while nobody might read come in when it is allowed again."""
    folder = Path(tempfile.mkdtemp(prefix="metricsd-test-", dir="/tmp"))
    rig = Rig(folder, clock, Settings())
    try:
        folder.chmod(0o755)
        path = rig.shared(rig.line(0))
        for owned in (rig.spool, rig.new, path):
            if not os.geteuid():
                os.chown(owned, NOBODY, -1)
        rig.tick()
        rig.restart()
        path.chmod(0o000)
        clock.advance(10)
        with path.open("ab") if not os.geteuid() else open(os.devnull, "ab") as file:
            file.write(rig.line(1))
        with as_nobody():
            assert rig.tick() == (0, 0, 0, False)
        path.chmod(0o600)
        if os.geteuid():
            rig.shared(rig.line(1))
        with as_nobody():
            assert rig.tick() == (1, 0, 0, False)
        assert rig.durations == [0, 1]
    finally:
        rig.close()
        shutil.rmtree(folder)


def test_a_rotated_file_is_read_for_a_while_and_then_let_go(rig: Rig) -> None:
    """Its handle is closed and its checkpoint dropped after the wait since it last grew; a torn end is quarantined."""
    path = rig.shared(rig.line(0))
    rig.tick()
    with path.open("ab", buffering=0) as late:
        path.rename(rig.spool / "events.jsonl.1")
        rig.shared(rig.line(1))
        assert rig.tick().added == 1
        assert set(sources.load_all(rig.store)) == {str(path), rotated_place(str(path), os.fstat(late.fileno()))}
        rig.clock.advance(rig.settings.rotated_wait_s - 1)
        late.write(rig.line(2) + b'{"torn')
        assert rig.tick().added == 1
        rig.clock.advance(rig.settings.rotated_wait_s - 1)
        assert rig.tick() == (0, 0, 0, False)
        rig.clock.advance(2)
        assert rig.tick() == (0, 0, 1, False)
    assert set(sources.load_all(rig.store)) == {str(path)}
    assert [(entry.reason, entry.file) for entry in quarantine.list_open(rig.store)] == [("incomplete", path.name)]


def test_a_rotated_file_is_read_on_after_a_kill(rig: Rig) -> None:
    """Where it lies is stored before its name's next file is read."""
    path = rig.shared(rig.line(0))
    rig.tick()
    path.rename(rig.spool / "events.jsonl.1")
    rig.shared(rig.line(1))
    rig.tick()
    rig.restart()
    with (rig.spool / "events.jsonl.1").open("ab") as late:
        late.write(rig.line(2))
    assert rig.tick() == (1, 0, 0, False)


def test_a_rewrite_of_the_same_size_within_the_grain_of_the_clock_is_noticed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata alone cannot tell; the content is compared once more when the file has been quiet."""
    path = rig.shared(rig.line(10))
    rig.tick()
    path.write_bytes(rig.line(20))
    monkeypatch.setattr(growing, "stamp_of", lambda found: (found.st_ino, found.st_size))
    rig.tail._shared._seen[str(path)] = shared._Seen(growing.stamp_of(path.stat()), rig.clock.monotonic(), sure=False)
    assert rig.tick().added == 0
    rig.clock.advance(shared.RECHECK_S)
    assert rig.tick().added == 1


def test_waits_do_not_depend_on_the_wall_clock(rig: Rig) -> None:
    """Setting the clock forward gives up on no hook at work and on no rotated file; setting it back delays nothing."""
    unfinished = rig.new / "Stop-1-1-0.jsonl"
    unfinished.write_bytes(b'{"v":1,')
    path = rig.shared(rig.line(0))
    rig.tick()
    place = rotated_place(str(path), path.stat())
    path.rename(rig.spool / "events.jsonl.1")
    rig.tick()
    for jump_s in (10_000_000, -20_000_000):
        rig.clock.jump(jump_s)
        assert rig.tick() == (0, 0, 0, False)
        assert unfinished.exists()
        assert place in sources.load_all(rig.store)
    rig.shared(rig.line(1))
    assert rig.tick().added == 1
    rig.clock.advance(rig.settings.incomplete_after_s)
    assert rig.tick().rejected == 1


def test_zeros_at_the_end_are_waited_for_and_a_hole_is_walked_over(rig: Rig) -> None:
    """Room that somebody reserved is filled later; a hole before a line costs neither memory nor the line."""
    path = rig.shared(rig.line(0) + b"\0" * 100)
    assert rig.tick() == (1, 0, 0, False)
    with path.open("r+b") as file:
        file.seek(len(rig.line(0)))
        file.write(rig.line(1))
    assert rig.tick().added == 1
    with path.open("r+b") as file:
        file.truncate(3 << 30)
        file.seek(3 << 30)
        file.write(rig.line(2))
    assert rig.tick() == (1, 0, 0, False)


def test_a_single_file_is_a_source_and_its_rotation_is_followed(tmp_path: Path, clock: FakeClock) -> None:
    """Also one that does not exist yet, and one without our suffix."""
    path = tmp_path / "logs" / "tool.log"
    rig = Rig(tmp_path, clock, Settings(sources=(str(path),)))
    assert rig.tick().added == 0
    path.parent.mkdir()
    path.write_bytes(rig.line(0))
    assert rig.tick().added == 1
    with path.open("ab") as file:
        path.rename(f"{path}.1")
        file.write(rig.line(1))
    assert rig.tick().added == 1
    path.write_bytes(rig.line(2))
    assert rig.tick().added == 1
    rig.close()


def test_files_that_are_behind_take_turns(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One busy file does not starve another."""
    monkeypatch.setattr(growing, "CHUNK_BYTES", 600)
    for name in ("a.jsonl", "b.jsonl"):
        rig.shared(lines(rig, 0 if name < "b" else 500, 100 if name < "b" else 600), name)
    rig.tail.tick()
    rig.tail.tick()
    assert {n // 500 for n in rig.durations} == {0, 1}


def test_a_linked_spool_is_followed_when_the_link_is_switched(rig: Rig, tmp_path: Path) -> None:
    """Each folder behind the link is read; a file of the same name there is another file."""
    first, second = tmp_path / "one", tmp_path / "two"
    for number, folder in enumerate((first, second)):
        (folder / "new").mkdir(parents=True)
        (folder / "events.jsonl").write_bytes(rig.line(number * 10))
    shutil.rmtree(rig.spool)
    rig.spool.symlink_to(first)
    assert rig.tick().added == 1
    rig.spool.unlink()
    rig.spool.symlink_to(second)
    assert rig.tick().added == 1
    rig.shared(rig.line(11))
    assert rig.tick().added == 1


def test_a_line_of_a_later_version_is_stored_once_after_the_upgrade(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quarantined by the version that did not understand it; read again by one that does, it is one event."""
    from metricsd.decode import envelope

    later = rig.line(1).replace(b'"v": 1', b'"v": 2')
    rig.shared(rig.line(0) + later)
    assert rig.tick() == (1, 0, 1, False)
    (entry,) = quarantine.list_open(rig.store)
    assert entry.reason == "newer_version"
    monkeypatch.setattr(envelope, "LINE_VERSION", 2)
    monkeypatch.setattr(envelope, "_check", lambda line: None)
    rig.shared(quarantine.bytes_of(rig.store, entry) or b"", "retried.jsonl")
    rig.shared(b"\n", "retried.jsonl")
    assert rig.tick() == (1, 0, 0, False)
    rig.store.db.execute("DELETE FROM source")
    rig.restart()
    assert rig.tick().added == 0
    assert rig.durations == [0, 1]


def test_captures_are_taken_from_both_ends_and_new_ones_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of a backlog and what comes during it do not wait for the oldest; the middle comes last."""
    from metricsd import backlog, tail

    monkeypatch.setattr(tail, "CAPTURES_PER_TICK", 10)
    rig = Rig(tmp_path, FakeClock(SystemClock().now_us() - 1_000_000_000), Settings())
    for n in range(100):
        rig.capture(n)
        rig.clock.advance(1)
    rig.tail.tick()
    assert rig.durations == list(range(90, 100))
    rig.capture(500)
    rig.tail.tick()
    rig.tail.tick()
    assert set(rig.durations) == {500, *range(10), *range(81, 100)}
    monkeypatch.setattr(backlog, "NAMES_MAX", 20)
    rig.tick()
    assert len(rig.durations) == 101
    assert rig.tail.progress.left == 0
    rig.close()
