"""Every recorded exchange of the older API, replayed in order against a real daemon, each set-up carried out for real."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.failing import BOUND
from tests.homes import REPOSITORY, Home, opened, stop, until
from tests.legacy.replay import RECORDINGS, Replay, Reply

EXEMPT: Mapping[str, str] = {
    "version": "mode is the failover mode, in truth: without a login it is local_only",
    "migration status on a fresh server": "mode, login and mean time are the daemon's own; it never synced",
    "migration status after work": "what waits is counted, and nothing was sent without a login",
    "session-end": "productivityScore is computed; the original answered 75 always",
}
"""Recordings that pin a constant of the original: compared by keys and types. The same list as in docs/api-legacy.md."""
FILES = ("", "-wal", "-shm")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Port:
    """A client of the daemon's port, over one connection that is made anew after a restart."""

    def __init__(self, home: Home) -> None:
        self.port = int(home.env["METRICSD_LEGACY_LISTEN"].rpartition(":")[2])
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        connection = self._connection
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            answer = connection.getresponse()
            data = answer.read()
        except BaseException:
            connection.close()
            raise
        return Reply(answer.status, json.loads(data or b"null"), str(answer.headers["Content-Type"]))

    def is_open(self) -> bool:
        self._connection.close()
        with contextlib.suppress(OSError):
            return self.ask("GET", "/api/v1/version", {}, None).status == 200
        return False

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    root = tmp_path / "home"
    with opened(
        root,
        HOME=str(tmp_path),
        USER="recorder",
        METRICSD_LEGACY_LISTEN=f"127.0.0.1:{free_port()}",
        METRICSD_STORE_CHECK_S="0.05",
    ) as made:
        yield made


@pytest.fixture
def port(home: Home) -> Iterator[Port]:
    made = Port(home)
    yield made
    made.close()


def start(home: Home, port: Port) -> None:
    """Start the daemon so that permissions bind it, even when root runs the tests, and wait until the port answers."""
    process = home.start_python(BOUND)
    until(lambda: process.poll() is not None or port.is_open())
    assert process.poll() is None, process.communicate()


def set_up(setup: Mapping[str, object], home: Home, port: Port) -> None:
    """Do for real what a recording needs."""
    if setup.get("restart"):
        stop(home.processes[-1])
        start(home, port)
    files = setup.get("write_files", {})
    assert isinstance(files, dict)
    for name, content in files.items():
        path = Path(home.env["HOME"]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    if "database" in setup:
        down = setup["database"] == "down"
        for suffix in FILES:
            path = home.paths.store.with_name(home.paths.store.name + suffix)
            if path.exists():
                path.chmod(0o400 if down else 0o600)
        wanted = 503 if down else 200
        until(lambda: port.ask("GET", "/api/v1/health", {}, None).status == wanted)


def test_every_recording_is_answered_as_it_should_be(home: Home, port: Port) -> None:
    """All of them, in order, on a fresh home: faults corrected, constants true, everything else as recorded."""
    start(home, port)
    replay = Replay({"<env:USER>": "recorder", "<cwd>": str(REPOSITORY), "<home>": home.env["HOME"]})
    wrong = []
    for recording in RECORDINGS:
        set_up(recording.get("setup", {}), home, port)
        exchange = replay.prepare(recording)
        reply = port.ask(recording["method"], exchange.path, exchange.headers, exchange.body)
        found = replay.compare(exchange, reply, shape_only=exchange.name in EXEMPT)
        if found is not None:
            wrong.append(found)
    assert not wrong, "\n".join(wrong)
    assert len(RECORDINGS) >= 253
    assert {one["name"].removeprefix("shared/") for one in RECORDINGS} >= set(EXEMPT)


def test_what_came_while_the_database_was_down_is_in_the_store_once(home: Home, port: Port) -> None:
    """A call that was acknowledged is kept, told again it is one, and a session is not acknowledged at all."""
    start(home, port)
    call = {
        "event": "x",
        "timestamp": "2025-03-10T06:01:00Z",
        "session_id": "down",
        "tool_name": "Read",
        "parameters": {"a": 1},
    }
    headers = {"content-type": "application/json"}
    set_up({"database": "down"}, home, port)
    for _ in range(2):
        assert port.ask("POST", "/api/v1/tool-metrics", headers, json.dumps(call).encode()).status == 201
    session = {"session_id": "down", "start_time": "2025-03-10T06:00:00Z", "user": "u"}
    assert port.ask("POST", "/api/v1/sessions", headers, json.dumps(session).encode()).status == 503
    stop(home.processes[-1])
    for suffix in FILES:
        path = home.paths.store.with_name(home.paths.store.name + suffix)
        if path.exists():
            path.chmod(0o600)
    start(home, port)
    until(lambda: home.events() == 1)
    assert port.ask("POST", "/api/v1/tool-metrics", headers, json.dumps(call).encode()).status == 201
    shown = port.ask("GET", "/api/v1/tool-metrics/down", {}, None).body["data"]
    assert [one["parameters"] for one in shown] == [{"a": 1}]
    assert home.events() == 1
    assert os.listdir(home.paths.state_dir).count("older_api_waiting.jsonl") == 0
