"""The spool's contract as Python sees it: names, writing, listing, safe opening, times."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd import spool
from metricsd.errors import LineRejected, StoreUnavailable, UsageError
from tests.fakes import START_US, FakeClock

NUMBERS = st.integers(0, 2**31)


@given(
    event=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", fullmatch=True), pid=NUMBERS, ppid=NUMBERS, counter=NUMBERS
)
def test_a_name_says_what_it_was_made_of(event: str, pid: int, ppid: int, counter: int) -> None:
    """parse_name(capture_name(x)) == x, hyphens in the event included."""
    assert spool.parse_name(spool.capture_name(event, pid, ppid, counter)) == (event, pid, ppid, counter)


@pytest.mark.parametrize(
    "name",
    ["", "x.jsonl", "Stop-1-2.jsonl", "Stop-1-2-x.jsonl", ".x-1-2-3.jsonl", "S/x-1-2-3.jsonl", "Stop-1-2-3.jsonl\n"],
)
def test_other_names_are_refused(name: str) -> None:
    """The reason is stable."""
    with pytest.raises(LineRejected) as caught:
        spool.parse_name(name)
    assert caught.value.reason == "capture_name"


@settings(max_examples=50)
@given(
    payload=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_append_writes_what_it_was_given(tmp_path: Path, payload: Any) -> None:
    """The line holds version, second, app, event and an equal payload, ends in its only newline, and is private."""
    path = spool.append("Stop", payload, app="test", spool=tmp_path, clock=FakeClock())
    line = spool.read_capture(tmp_path, path.name)
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    assert json.loads(line) == {"v": 1, "s": START_US // 1_000_000, "app": "test", "event": "Stop", "payload": payload}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()


def test_append_never_uses_a_name_twice(tmp_path: Path) -> None:
    """Equal captures of one second get other names even when the daemon took the first one in between."""
    names = set()
    for _ in range(20):
        path = spool.append("Note", {"n": 1}, spool=tmp_path)
        names.add(path.name)
        path.unlink()
    assert len(names) == 20


@pytest.mark.parametrize("event", ["", "a b", "../x", ".x", "-x", "x" * 65, "x\n", "é"])
def test_append_refuses_words_that_fit_no_name(event: str, tmp_path: Path) -> None:
    """As the event and as the app; nothing is written."""
    with pytest.raises(UsageError, match="event"):
        spool.append(event, {}, spool=tmp_path)
    with pytest.raises(UsageError, match="app"):
        spool.append("Stop", {}, app=event, spool=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_append_refuses_what_is_no_json_or_too_long(tmp_path: Path) -> None:
    """NaN, sets and payloads above the cap are the caller's mistake, named with the event."""
    for payload in (float("nan"), {1, 2}, "x" * spool.PAYLOAD_BYTES_MAX):
        with pytest.raises(UsageError, match="Stop"):
            spool.append("Stop", payload, spool=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_append_leaves_no_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails after the first bytes takes its file away and says what to do."""
    real = os.write
    calls: list[int] = []

    def fail(fd: int, data: Any) -> int:
        calls.append(fd)
        if len(calls) == 1:
            return real(fd, bytes(data[:5]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(StoreUnavailable, match="free disk space"):
        spool.append("Stop", {}, spool=tmp_path)
    assert list(spool.captures_folder(tmp_path).iterdir()) == []


def test_ensure_spool_makes_and_tightens_the_folders(tmp_path: Path) -> None:
    """0700 whatever was there, and a second time changes nothing."""
    folder = tmp_path / "a" / "spool"
    folder.mkdir(parents=True, mode=0o755)
    folder.chmod(0o777)
    for _ in range(2):
        assert spool.ensure_spool(folder) == folder / "new"
        assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder / "new")] == [0o700, 0o700]
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        spool.ensure_spool(tmp_path / "file")


def test_listing_is_oldest_first_bounded_and_counts_like_pending(tmp_path: Path) -> None:
    """By time, then by name; folders are no captures; a missing folder is an empty one."""
    assert spool.list_captures(tmp_path) == []
    assert spool.pending(tmp_path) == (0, 0, None)
    new = spool.ensure_spool(tmp_path)
    (new / "folder").mkdir()
    for name, size, at in (("c", 3, 5), ("b", 2, 7), ("a", 1, 7), ("d", 0, 1)):
        (new / name).write_bytes(b"x" * size)
        os.utime(new / name, ns=(at, at))
    assert spool.list_captures(tmp_path) == [("d", 0, 1), ("c", 3, 5), ("a", 1, 7), ("b", 2, 7)]
    assert [each.name for each in spool.list_captures(tmp_path, limit=3)] == ["d", "c", "a"]
    assert spool.pending(tmp_path) == (4, 6, 1)


def _symlink(path: Path) -> None:
    path.with_name("target").write_text("{}\n")
    path.symlink_to(path.with_name("target"))


def _hard_link(path: Path) -> None:
    path.write_text("{}\n")
    os.link(path, path.with_name("second"))


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


def _foreign(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another user: the owner check was NOT tested")
    path.write_text("{}\n")
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_symlink, "capture_symlink"),
        (os.mkfifo, "capture_not_regular"),
        (Path.mkdir, "capture_not_regular"),
        (_socket, "capture_not_regular"),
        (_hard_link, "capture_hard_link"),
        (_foreign, "capture_owner"),
    ],
)
def test_only_plain_files_of_ours_are_opened(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    """Each planted thing is refused at once, with its reason, and no descriptor leaks."""
    path = spool.ensure_spool(tmp_path) / "Stop-1-2-3.jsonl"
    make(path)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(LineRejected) as caught:
        spool.open_capture(tmp_path, path.name)
    assert caught.value.reason == reason
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b"])
def test_a_name_is_never_a_path(name: str, tmp_path: Path) -> None:
    """What could leave the folder is refused before anything is opened."""
    with pytest.raises(LineRejected) as caught:
        spool.open_capture(tmp_path, name)
    assert caught.value.reason == "capture_path"


def test_reading_is_bounded_and_a_gone_capture_is_no_reject(tmp_path: Path) -> None:
    """Above the limit nothing is read; a capture that another took is a FileNotFoundError."""
    new = spool.ensure_spool(tmp_path)
    (new / "x").write_bytes(b"12345")
    assert spool.read_capture(tmp_path, "x", bytes_max=5) == b"12345"
    with pytest.raises(LineRejected) as caught:
        spool.read_capture(tmp_path, "x", bytes_max=4)
    assert caught.value.reason == "oversize"
    with pytest.raises(FileNotFoundError):
        spool.read_capture(tmp_path, "gone")


@pytest.mark.parametrize(
    ("second", "mtime_ns", "expected_us"),
    [
        (100, 100_123_456_789, 100_123_456),
        (100, 102_000_000_000, 102_000_000),
        (100, 102_000_000_001, 100_000_000),
        (100, 98_000_000_000, 98_000_000),
        (100, 97_999_999_999, 100_000_000),
        (0, 5_000_001_000, 5_000_001),
        (None, 5_000_001_000, 5_000_001),
    ],
)
def test_event_time_is_the_files_unless_it_is_a_copy(second: int | None, mtime_ns: int, expected_us: int) -> None:
    """Within 2 s of the line's second the file's time counts, beyond it the second, without one the file's."""
    assert spool.event_time_us(second, mtime_ns) == expected_us


def test_the_contract_is_cheap_to_import() -> None:
    """`metricsd status` imports it: none of the heavy packages may come with it."""
    heavy = "msgspec click httpx structlog platformdirs asyncio.events json"
    script = f"import metricsd.spool, sys; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['asyncio.events']")
