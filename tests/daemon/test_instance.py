"""One instance per home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metricsd.errors import AlreadyRunning
from metricsd.instance import InstanceLock, find_holder
from tests.homes import REPOSITORY, opened, until

HOLD = """
import sys, time
from pathlib import Path
from metricsd.instance import InstanceLock
lock = InstanceLock.acquire(Path(sys.argv[1]), "daemon")
print("held", flush=True)
time.sleep(60)
"""


def test_second_instance_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    """The refusal names the process, so that the user can look at it."""
    with (
        InstanceLock.acquire(tmp_path / "daemon.lock", "daemon"),
        pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"),
    ):
        InstanceLock.acquire(tmp_path / "daemon.lock", "daemon")


def test_foreground_sync_is_named_as_such(tmp_path: Path) -> None:
    """A short command that holds the lock is not called a daemon."""
    with InstanceLock.acquire(tmp_path / "daemon.lock", "sync"), pytest.raises(AlreadyRunning, match="metricsd sync"):
        InstanceLock.acquire(tmp_path / "daemon.lock", "daemon")


def test_lock_is_free_again_after_release(tmp_path: Path) -> None:
    """Releasing lets the next one in; nobody is named as holder meanwhile."""
    path = tmp_path / "state" / "daemon.lock"
    InstanceLock.acquire(path, "daemon").release()
    assert find_holder(path) is None
    InstanceLock.acquire(path, "daemon").release()


def test_holder_is_found_without_disturbing_it(tmp_path: Path) -> None:
    """Looking does not take the lock away, and says pid, role and version."""
    path = tmp_path / "daemon.lock"
    with InstanceLock.acquire(path, "daemon"):
        for _ in range(3):
            holder = find_holder(path)
            assert holder is not None
            assert (holder.pid, holder.role) == (os.getpid(), "daemon")


def test_kill_leaves_no_stale_lock(tmp_path: Path) -> None:
    """After kill -9 of the holder the next start succeeds at once."""
    path = tmp_path / "daemon.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        holder = find_holder(path)
        assert holder is not None
        assert holder.pid == process.pid
    finally:
        process.kill()
        process.communicate()
    until(lambda: find_holder(path) is None)
    InstanceLock.acquire(path, "daemon").release()


def test_a_reused_process_id_blocks_nothing(tmp_path: Path) -> None:
    """The name in the file is for people: who lives under that number now does not hold the lock."""
    path = tmp_path / "daemon.lock"
    name = {"pid": os.getpid(), "role": "daemon", "started": time.time(), "version": "0"}
    path.write_text(json.dumps(name))
    assert find_holder(path) is None
    with opened(tmp_path / "home") as home:
        home.paths.lock.parent.mkdir(parents=True, exist_ok=True)
        home.paths.lock.write_text(json.dumps(name))
        assert home.run("down").returncode in (0, 4)
        process = home.start_daemon()
        assert home.status()["daemon"]["pid"] == process.pid


def test_of_many_daemons_that_start_at_once_one_runs(tmp_path: Path) -> None:
    """The others say who holds the home and end with 1; nobody is left waiting."""
    with opened(tmp_path / "home") as home:
        processes = [home.start("run") for _ in range(4)]
        until(lambda: sum(process.poll() is not None for process in processes) == 3)
        until(lambda: home.status()["daemon"]["running"])
        [winner] = [process for process in processes if process.poll() is None]
        assert home.status()["daemon"]["pid"] == winner.pid
        for process in processes:
            if process is not winner:
                _, said = process.communicate(timeout=10)
                assert process.returncode == 1
                assert "already runs" in said
