"""The dialogue with a service manager: a real daemon and a socket in the manager's place."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd import control
from metricsd.notify import STATUS_CHARS_MAX, Notifier
from tests.homes import Home, opened, stop, until

BEAT_US = 400_000
HANGING = """
import asyncio, os, time
from pathlib import Path
from metricsd.config import find_paths, load_config
from metricsd.daemon import Daemon

async def look():
    while not Path(os.environ["HANG_WHEN"]).exists():
        await asyncio.sleep(0.02)
    print("hangs", flush=True)
    time.sleep(600)

async def main():
    task = asyncio.create_task(look())
    await Daemon(find_paths(), load_config(find_paths())).run()

asyncio.run(main())
"""


class Manager:
    """What systemd is to a service of Type=notify: a datagram socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        """Return everything that was said so far."""
        while True:
            try:
                self.heard.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return self.heard

    def count(self, message: str) -> int:
        return self.listen().count(message)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets exist on Linux only")
    # Short, because a socket's path holds about a hundred bytes.
    name = f"@metricsd-test-{os.getpid()}" if request.param == "abstract" else os.path.relpath(tmp_path / "n.sock", "/")
    made = Manager(name if name.startswith("@") else f"/{name}")
    yield made
    made.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home") as made:
        yield made


def test_a_manager_hears_ready_status_heartbeats_and_the_end(home: Home, manager: Manager) -> None:
    """READY comes when the socket answers, beats go on, and the stop is announced before the process ends."""
    home.env |= {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(BEAT_US)}
    daemon = home.start("run")
    until(lambda: manager.count("READY=1"))
    # At the very moment of READY: the manager starts what depends on us now.
    assert control.call(home.paths.state_dir, "ping", timeout_s=2.0)["ready"] is True
    assert any(line.startswith("STATUS=local_only: ") for line in manager.listen())
    beats = manager.count("WATCHDOG=1")
    until(lambda: manager.count("WATCHDOG=1") >= beats + 3)
    assert manager.count("READY=1") == 1
    assert manager.count("STOPPING=1") == 0
    assert stop(daemon) == 0
    assert manager.count("STOPPING=1") == 1
    assert manager.heard.index("STOPPING=1") > manager.heard.index("READY=1")


def test_a_daemon_that_hangs_stops_beating(home: Home, tmp_path: Path) -> None:
    """The beat comes from the event loop: one that is stuck in a call is silent, and the manager kills it."""
    manager = Manager(str(tmp_path / "n.sock"))
    hang = tmp_path / "hang"
    daemon = home.start_python(
        HANGING,
        HANG_WHEN=str(hang),
        NOTIFY_SOCKET=manager.address,
        WATCHDOG_USEC=str(BEAT_US),
    )
    until(lambda: manager.count("WATCHDOG=1") >= 2)
    hang.touch()
    assert daemon.stdout is not None
    assert "hangs\n" in daemon.stdout
    # Everything up to here was said before it hung.
    beats = manager.count("WATCHDOG=1")
    # Longer than the manager's own limit: a beat in this time would keep a dead daemon alive.
    with pytest.raises(AssertionError, match="not within"):
        until(lambda: manager.count("WATCHDOG=1") > beats, within_s=2 * BEAT_US / 1e6)
    manager.close()
    daemon.send_signal(signal.SIGKILL)
    stop(daemon)


def test_a_manager_that_goes_away_does_not_matter(home: Home, tmp_path: Path) -> None:
    """Nobody listens any more: the daemon works on and ends as always."""
    manager = Manager(str(tmp_path / "n.sock"))
    home.env |= {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(BEAT_US)}
    daemon = home.start("run")
    until(lambda: manager.count("READY=1"))
    manager.close()
    home.ok("record", "PostToolUse", '{"tool_name":"Read","session_id":"s"}')
    until(lambda: home.events() == 1)
    assert stop(daemon) == 0


def test_without_a_manager_nothing_is_said() -> None:
    """No variable, nothing to do; a broken one counts as none."""
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"WATCHDOG_USEC": "1000"}):
        notifier = Notifier.from_environment(environ)
        assert not notifier.listens
        notifier.ready()
        notifier.status("nobody reads this")
        notifier.stopping()


def test_the_heartbeat_is_half_of_the_limit_and_only_for_this_process() -> None:
    """WATCHDOG_PID names whom the manager watches; a child that inherited the variables is not meant."""
    socket_name = {"NOTIFY_SOCKET": "/nowhere"}
    assert Notifier.from_environment(socket_name | {"WATCHDOG_USEC": "60000000"}).beat_s == 30.0
    ours = {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(socket_name | ours).beat_s == 30.0
    assert Notifier.from_environment(socket_name | ours | {"WATCHDOG_PID": "1"}).beat_s is None
    assert Notifier.from_environment(socket_name | {"WATCHDOG_USEC": "soon"}).beat_s is None
    assert Notifier.from_environment(socket_name | {"WATCHDOG_USEC": "0"}).beat_s is None


def test_the_variables_are_taken_out_of_the_environment() -> None:
    """A plug-in must not be able to say READY or to beat in the daemon's name."""
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/root"}
    Notifier.from_environment(environ)
    assert environ == {"HOME": "/root"}


async def test_the_status_line_is_sent_when_it_changes(tmp_path: Path) -> None:
    """One line, bounded, without what could end it early; the same one is not repeated."""
    manager = Manager(str(tmp_path / "n.sock"))
    notifier = Notifier(manager.address)
    for text in ("hybrid: synced", "hybrid: synced", "local_only: auth\nREADY=1", "x" * 10_000, ""):
        notifier.status(text)
    heard = manager.listen()
    assert heard == ["STATUS=hybrid: synced", "STATUS=local_only: auth READY=1", f"STATUS={'x' * STATUS_CHARS_MAX}"]
    manager.close()


async def test_a_full_queue_of_the_manager_never_blocks(tmp_path: Path) -> None:
    """A manager that does not read costs nothing but its own messages."""
    manager = Manager(str(tmp_path / "n.sock"))
    notifier = Notifier(manager.address, BEAT_US)
    async with asyncio.timeout(5):
        for _ in range(5000):
            notifier.beat()
    assert 0 < len(manager.listen()) < 5000
    manager.close()
