"""The daemon as a real process: one a home, ready when it says so, stopping in time, taking captures whatever happens."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from metricsd.config import Daemon, find_paths, load_config
from metricsd.control import socket_path
from metricsd.daemon import Daemon as DaemonUnderTest
from metricsd.identity import Credentials, save_login
from metricsd.ids import DeviceId
from metricsd.instance import find_holder
from metricsd.store.connection import Store
from tests.homes import Home, opened, stop, tool_use, until


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home") as made:
        yield made


@pytest.fixture
def hanging_cloud() -> Iterator[str]:
    """A cloud that accepts every connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _log_in(home: Home, url: str) -> None:
    credentials = Credentials(url, "a-token", b"k" * 32, "t", "u", DeviceId("d" * 32))
    save_login(home.paths, credentials, parent=None)


def test_a_capture_reaches_the_store_and_leaves_the_spool(home: Home) -> None:
    """From the real hook to `status`, with nothing left behind."""
    home.start_daemon()
    for number in range(5):
        home.capture("PostToolUse", tool_use(number))
    until(lambda: home.events() == 5)
    assert until(lambda: home.status()["spool"]["pending_files"] == 0)
    assert home.status()["store"]["sessions"] == 1


def test_captures_made_before_the_start_are_taken_in(home: Home) -> None:
    """The spool waits for the daemon, not the other way round."""
    home.run("status")
    home.capture("PostToolUse", tool_use(1))
    assert home.status()["spool"]["pending_files"] == 1
    home.start_daemon()
    until(lambda: home.events() == 1)


def test_second_daemon_says_who_runs_and_leaves_it_alone(home: Home) -> None:
    """One a home: the second exits 1 with one line that names the first."""
    first = home.start_daemon()
    second = home.run("run")
    assert second.returncode == 1
    assert f"pid {first.pid}" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert home.status()["daemon"]["pid"] == first.pid


def test_daemon_starts_after_a_kill(home: Home) -> None:
    """A stale socket and a stale name in the lock file stop nobody; what was captured meanwhile arrives."""
    first = home.start_daemon()
    first.kill()
    first.wait(10)
    assert socket_path(home.paths.state_dir).exists()
    assert home.status()["daemon"]["running"] is False
    home.capture("PostToolUse", tool_use(1))
    home.start_daemon()
    until(lambda: home.events() == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(home: Home, number: signal.Signals) -> None:
    """Exit 0, socket and lock free, WAL moved into the database."""
    process = home.start_daemon()
    home.capture("PostToolUse", tool_use(1))
    process.send_signal(number)
    assert process.wait(10) == 0
    found = home.status()
    assert (found["daemon"]["state"], found["store"]["events"]) == ("stopped", 1)
    assert not socket_path(home.paths.state_dir).exists()
    wal = home.paths.store.with_name("store.db-wal")
    assert not wal.exists() or wal.stat().st_size == 0


def test_it_stops_in_time_though_the_cloud_hangs(home: Home, hanging_cloud: str) -> None:
    """An open request does not hold the stop up, and the captures of the last moment are taken in."""
    _log_in(home, hanging_cloud)
    process = home.start_daemon()
    home.capture("PostToolUse", tool_use(1))
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - began < Daemon().stop_timeout_s
    assert home.events() == 1


def test_captures_are_taken_in_while_the_cloud_hangs(home: Home, hanging_cloud: str) -> None:
    """Sync waits, the tail does not; and status is answered at once."""
    _log_in(home, hanging_cloud)
    home.start_daemon()
    syncing = home.start("sync", "--now", "--timeout", "20")
    for number in range(20):
        home.capture("PostToolUse", tool_use(number))
    until(lambda: home.events() == 20, within_s=5)
    assert home.status()["sync"]["pending_events"] == 20
    stop(syncing)


def test_files_are_private(home: Home) -> None:
    """Nobody else reads the store, the log, the lock, the identity or the socket's folder."""
    home.start_daemon()
    state = home.paths.state_dir
    for file in (home.paths.store, home.paths.log_file, home.paths.lock, home.paths.identity):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    for folder in (home.paths.spool, home.paths.spool / "new", state / "log", state / "run"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_up_and_down_are_idempotent(home: Home) -> None:
    """`up` waits until it is ready, a second one changes nothing; `down` waits for the end, a second one is no error."""
    assert "metricsd runs" in home.ok("up")
    pid = home.status()["daemon"]["pid"]
    assert home.status()["daemon"]["running"] is True
    assert f"already runs (pid {pid})" in home.ok("up")
    assert f"stopped (pid {pid})" in home.ok("down")
    assert home.status()["daemon"]["running"] is False
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert "does not run" in home.ok("down")


def test_down_stops_a_daemon_whose_socket_is_gone(home: Home) -> None:
    """It falls back to a signal, to the process that holds the lock."""
    process = home.start_daemon()
    socket_path(home.paths.state_dir).unlink()
    assert home.status()["daemon"]["state"] == "starting"
    home.ok("down")
    assert process.wait(5) == 0


def test_a_wrong_config_does_not_keep_the_daemon_running(home: Home) -> None:
    """`down` works whatever the settings have become."""
    process = home.start_daemon()
    home.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
    home.paths.config_file.write_text("[nonsense]\n")
    home.ok("down")
    assert process.wait(5) == 0


def test_up_passes_on_why_the_daemon_did_not_start(home: Home) -> None:
    """One line with the cause, not a log file's name."""
    home.paths.identity.parent.mkdir(parents=True)
    home.paths.identity.write_text("not json")
    done = home.run("up")
    assert done.returncode == 1
    assert "identity.json" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


class _Broken:
    """A companion that dies once it is up."""

    async def serve(self) -> None:
        raise ZeroDivisionError

    async def join(self) -> None:
        await asyncio.Event().wait()


async def test_a_task_that_dies_ends_the_daemon_loudly(tmp_path: Path) -> None:
    """The daemon never lives on without one of its tasks; the store is closed all the same."""
    paths = find_paths({"METRICSD_HOME": str(tmp_path)})
    daemon = DaemonUnderTest(paths, load_config(paths, {}), companion=_Broken())
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(daemon.run(), 10)
    assert caught.group_contains(ZeroDivisionError)
    assert not socket_path(paths.state_dir).exists()
    Store.open(paths.store).close()


def test_a_fault_is_one_line(home: Home) -> None:
    """A cloud folder that cannot be one ends `run --with-cloud` with exit 1 and one line that names it."""
    home.paths.cloud.parent.mkdir(parents=True)
    home.paths.cloud.write_text("a file")
    done = home.run("run", "--with-cloud")
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"metricsd: {home.paths.cloud}")


async def test_a_stop_that_takes_too_long_is_forced(home: Home) -> None:
    """A daemon whose store thread hangs still ends, with exit 1, and what was not committed is in the spool."""
    code = "import time; from metricsd import tail; tail.Tail.tick = lambda self: time.sleep(60)"
    process = home.start_python(
        code + "; from metricsd.__main__ import main; main(['run'])", METRICSD_DAEMON_STOP_TIMEOUT_S="0.5"
    )
    until(lambda: home.status()["daemon"]["running"])
    home.capture("PostToolUse", tool_use(1))
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 1
    assert home.status()["spool"]["pending_files"] == 1


def test_it_stops_in_time_with_an_open_request_to_its_cloud(home: Home) -> None:
    """A client of the embedded cloud that never finishes its request cannot keep the process alive."""
    process = home.start_daemon("--with-cloud")
    port = int(str(home.status()["sync"]["url"]).rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), 5) as slow, socket.create_connection(("127.0.0.1", port), 5):
        slow.sendall(b"POST /sync/v1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - began < Daemon().stop_timeout_s


def test_a_stop_while_starting_is_a_stop(home: Home) -> None:
    """`down` right after `up`'s process began does not leave a daemon behind."""
    process = home.start("run", "--with-cloud")
    until(lambda: find_holder(home.paths.lock) is not None)
    done = home.run("down")
    assert done.returncode == 0, done.stderr
    process.wait(10)
    assert find_holder(home.paths.lock) is None
