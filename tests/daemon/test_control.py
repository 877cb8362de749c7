"""The control socket: private, bounded, and never confused by what it finds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from metricsd import __version__, control, control_server
from metricsd.control import DaemonSilent, call, socket_path
from metricsd.control_server import ControlServer
from metricsd.errors import AlreadyRunning, AuthError, DaemonNotRunning, MetricsdError, UsageError


async def _echo(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"said": request["word"]}


async def _refuse(request: Mapping[str, Any]) -> dict[str, Any]:
    raise AuthError("not logged in: run `metricsd login URL` first")


async def _break(request: Mapping[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError


async def _hang(request: Mapping[str, Any]) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


HANDLERS = {"echo": _echo, "refuse": _refuse, "break": _break, "hang": _hang}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlServer]:
    started = ControlServer(socket_path(tmp_path), HANDLERS)
    await started.start()
    yield started
    await started.close()


async def _call(state_dir: Path, verb: str, timeout_s: float = 5.0, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(call, state_dir, verb, timeout_s=timeout_s, **arguments)


async def _raw(path: Path, data: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
    line = await reader.readline()
    writer.close()
    answer: dict[str, Any] = json.loads(line)
    return answer


async def test_a_verb_answers_with_its_result(server: ControlServer, tmp_path: Path) -> None:
    """What the handler returns is what the caller gets."""
    assert await _call(tmp_path, "echo", word="hello") == {"said": "hello"}


async def test_every_reply_names_the_version(server: ControlServer) -> None:
    """A newer client can tell an older daemon, for answers and refusals alike."""
    for line in (b'{"v":1,"verb":"echo","word":"x"}\n', b"not json\n"):
        reply = await _raw(server.path, line)
        assert (reply["v"], reply["version"]) == (1, __version__)


async def test_an_error_keeps_its_class_message_and_exit_code(server: ControlServer, tmp_path: Path) -> None:
    """The command line exits as if the daemon's work had been its own."""
    with pytest.raises(AuthError, match="metricsd login URL") as caught:
        await _call(tmp_path, "refuse")
    assert caught.value.exit_code == 5


async def test_a_broken_handler_answers_and_the_server_goes_on(server: ControlServer, tmp_path: Path) -> None:
    """One bad request ends neither the daemon nor the next request."""
    with pytest.raises(MetricsdError, match="ZeroDivisionError"):
        await _call(tmp_path, "break")
    assert await _call(tmp_path, "echo", word="still") == {"said": "still"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\n", "not one line of JSON"),
        (b"[1]\n", "control version"),
        (b'{"v":99,"verb":"echo"}\n', "control version"),
        (b'{"v":1,"verb":"nothing"}\n', "does not know"),
        (b'{"v":1,"verb":"' + b"x" * 70_000 + b'"}\n', "longer than"),
    ],
)
async def test_a_wrong_request_is_refused_with_a_reason(server: ControlServer, line: bytes, why: str) -> None:
    """Each way of being wrong has its sentence, and exit code 2."""
    reply = await _raw(server.path, line)
    assert reply["ok"] is False
    assert why in reply["error"]["message"]
    assert reply["error"]["exit_code"] == UsageError.exit_code


async def test_a_silent_client_is_dropped(
    server: ControlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that never sends costs a bounded time and no answer."""
    monkeypatch.setattr(control_server, "READ_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_unix_connection(str(server.path))
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert await _call(tmp_path, "echo", word="next") == {"said": "next"}


async def test_the_client_gives_up_at_its_deadline(server: ControlServer, tmp_path: Path) -> None:
    """A daemon that hangs does not hang the command."""
    with pytest.raises(DaemonSilent, match="did not answer"):
        await _call(tmp_path, "hang", timeout_s=0.1)


async def test_closing_does_not_wait_for_a_hanging_handler(tmp_path: Path) -> None:
    """A stop ends open requests and removes the socket."""
    server = ControlServer(socket_path(tmp_path), HANDLERS)
    await server.start()
    hanging = asyncio.create_task(_call(tmp_path, "hang"))
    while not server._open:
        await asyncio.sleep(0.01)
    await asyncio.wait_for(server.close(), 5)
    with pytest.raises(DaemonSilent):
        await hanging
    assert not server.path.exists()


async def test_socket_is_private(server: ControlServer) -> None:
    """0600 in a folder of 0700."""
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700


async def test_another_user_is_not_answered(
    server: ControlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's user id decides, whatever the permissions let through."""
    monkeypatch.setattr(control_server, "peer_uid", lambda _: os.getuid() + 1)
    with pytest.raises(DaemonSilent):
        await _call(tmp_path, "echo", word="x")


async def test_a_stranger_listening_is_not_talked_to(
    server: ControlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client checks the other end too."""
    monkeypatch.setattr(control, "peer_uid", lambda _: os.getuid() + 1)
    with pytest.raises(MetricsdError, match="another user"):
        await _call(tmp_path, "echo", word="x")


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """What a kill -9 left behind does not stop the next start."""
    path = socket_path(tmp_path)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = ControlServer(path, HANDLERS)
    await server.start()
    assert await _call(tmp_path, "echo", word="x") == {"said": "x"}
    await server.close()


async def test_a_living_socket_is_not_stolen(server: ControlServer) -> None:
    """Who answers there is left alone, even without the lock."""
    with pytest.raises(AlreadyRunning, match="without holding the lock"):
        await ControlServer(server.path, HANDLERS).start()


def test_nobody_listening_is_daemon_not_running(tmp_path: Path) -> None:
    """No folder, no socket, a stale socket: all say to start the daemon."""
    with pytest.raises(DaemonNotRunning, match="metricsd up"):
        call(tmp_path, "ping", timeout_s=1)
    path = socket_path(tmp_path)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(DaemonNotRunning):
        call(tmp_path, "ping", timeout_s=1)


def test_an_open_folder_is_refused(tmp_path: Path) -> None:
    """A folder that others may enter could hold anybody's socket."""
    folder = socket_path(tmp_path).parent
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(MetricsdError, match="0700"):
        call(tmp_path, "ping", timeout_s=1)


async def test_a_long_path_falls_back_to_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home too deep for a socket's address still has one, found by both ends, in a private folder."""
    monkeypatch.setattr(control, "SHORT_FOLDER", tmp_path)
    deep = tmp_path / ("d" * 90) / "state"
    path = socket_path(deep)
    assert path.parent.parent == tmp_path
    assert path == socket_path(deep) != socket_path(deep / "other")
    server = ControlServer(path, HANDLERS)
    await server.start()
    assert await _call(deep, "echo", word="deep") == {"said": "deep"}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await server.close()
