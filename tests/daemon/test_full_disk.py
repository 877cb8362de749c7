"""A really full disk: a small tmpfs that is filled to the last byte under a running daemon."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.homes import opened, tool_use, until

SIZE_BYTES = 4 * 1024 * 1024
CAPTURES = 30


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=0700", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"THE FULL DISK IS NOT TESTED HERE: mounting a tmpfs needs root ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while stream.write(b"\0" * size):
                    continue


def test_a_full_disk_loses_nothing_and_is_said(small_disk: Path) -> None:
    """While it is full: hooks exit 0, status says so and exits 3. Once there is room, every capture is in the store."""
    with opened(small_disk / "home", METRICSD_TAIL_RESCAN_S="0.2") as home:
        process = home.start_daemon()
        home.capture("PostToolUse", tool_use(0))
        until(lambda: home.events() == 1)

        process.send_signal(signal.SIGSTOP)
        for number in range(1, CAPTURES + 1):
            home.capture("PostToolUse", tool_use(number))
        filler = small_disk / "filler"
        _fill(filler)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (small_disk / "one-more").write_bytes(b"\0" * 4096)
        process.send_signal(signal.SIGCONT)

        until(lambda: not home.status()["store"]["healthy"])
        assert "free some disk space" in home.status()["store"]["reason"]
        assert home.status()["spool"]["pending_files"] == CAPTURES
        home.capture("PostToolUse", tool_use(99))
        said = home.run("status")
        assert said.returncode == 3
        assert "free some disk space" in said.stdout
        assert process.poll() is None

        filler.unlink()
        until(lambda: home.events() == CAPTURES + 1)
        until(lambda: home.status()["store"]["healthy"])
        # All that may be left is the empty file of the hook that fired while the disk was full.
        assert [file.stat().st_size for file in (home.paths.spool / "new").iterdir()] in ([], [0])


def test_a_start_on_a_full_disk_is_one_clear_line(small_disk: Path) -> None:
    """The daemon that cannot make its store says which file and what to do, and starts once there is room."""
    with opened(small_disk / "home") as home:
        home.ok("--version")
        home.capture("PostToolUse", tool_use(1))
        filler = small_disk / "filler"
        _fill(filler)
        done = home.run("run")
        assert done.returncode == 1
        [line] = done.stderr.strip().splitlines()
        assert line.startswith("metricsd: ")
        assert str(small_disk) in line
        filler.unlink()
        home.start_daemon()
        until(lambda: home.events() == 1)
