"""The older API's port: off by default, open to this machine's programs alone, and bounded."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from metricsd.loopback import CONNECTIONS_MAX, HEAD_BYTES_MAX
from tests.daemon.test_local_metrics import ask, free_port
from tests.homes import Home, opened, until

BODY_MAX = 20_000


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("port")
    listen, limit = f"127.0.0.1:{free_port()}", str(BODY_MAX)
    with opened(root / "home", METRICSD_LEGACY_LISTEN=listen, METRICSD_LEGACY_BODY_BYTES_MAX=limit) as made:
        made.start_daemon()
        until(lambda: is_open(port_of(made)))
        yield made


def port_of(home: Home) -> int:
    return int(home.env["METRICSD_LEGACY_LISTEN"].rpartition(":")[2])


class Wire:
    """Requests written by hand, on connections that close after the answer unless told otherwise."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ours = f"Host: 127.0.0.1:{port}"

    def ask(self, first: str, *fields: str, body: bytes = b"", closes: bool = True) -> bytes:
        head = [f"{first} HTTP/1.1", *fields, *(["Connection: close"] if closes else [])]
        return ask(self.port, "\r\n".join([*head, "", ""]).encode() + body)

    def status(self, first: str, *fields: str, body: bytes = b"") -> int:
        return int(self.ask(first, *fields, body=body).split(b" ")[1])


@pytest.fixture
def wire(home: Home) -> Wire:
    return Wire(port_of(home))


def test_only_programs_of_this_machine_are_answered(wire: Wire) -> None:
    """No other Host, no Origin, no cross-site request; nothing invites a page to read."""
    version = "GET /api/v1/version"
    for good in (f"127.0.0.1:{wire.port}", f"localhost:{wire.port}", f"[::1]:{wire.port}"):
        assert wire.status(version, f"Host: {good}") == 200
    for bad in ("attacker.example", f"attacker.example:{wire.port}", "localhost", "", f"127.0.0.1:{wire.port + 1}"):
        assert wire.status(version, f"Host: {bad}") == 403, bad
    assert wire.status(version) == 403
    assert wire.status(version, wire.ours, "Origin: http://localhost") == 403
    assert wire.status(version, wire.ours, "Origin: null") == 403
    assert wire.status(version, wire.ours, "Sec-Fetch-Site: cross-site") == 403
    assert wire.status(version, wire.ours, "Sec-Fetch-Site: same-site") == 403
    assert b"access-control" not in wire.ask("OPTIONS /api/v1/sessions", wire.ours).lower()
    assert wire.status("OPTIONS /api/v1/sessions", wire.ours) == 404


def test_a_page_cannot_write(home: Home, wire: Wire) -> None:
    """What a page's form could send without asking first is refused by its Origin, and stores nothing."""
    body = b"session_id=x&start_time=2025-01-01&user=x"
    kind = "Content-Type: application/x-www-form-urlencoded"
    fields = (wire.ours, kind, f"Content-Length: {len(body)}")
    assert wire.status("POST /api/v1/sessions", *fields, "Origin: https://attacker.example", body=body) == 403
    assert home.events() == 0
    assert wire.status("POST /api/v1/sessions", *fields, body=body) == 201
    assert home.events() == 1


def test_a_connection_serves_many_requests(wire: Wire) -> None:
    """Keep-alive, in chunks and with a length, one after the other and before the answer was read."""
    chunked = b'8\r\n{"event"\r\n2;x=y\r\n:"\r\n1\r\nx\r\n2\r\n"}\r\n0\r\nTrailer: t\r\n\r\n'
    with socket.create_connection(("127.0.0.1", wire.port), timeout=10) as client:
        head = f"POST /api/v1/tool-metrics HTTP/1.1\r\n{wire.ours}\r\nContent-Type: application/json\r\n"
        for _ in range(3):
            client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunked)
        client.sendall(f"{head}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
        data = b""
        while part := client.recv(65536):
            data += part
    assert data.count(b'"timestamp\\" is required') == 3
    assert data.count(b'"event\\" is required') == 1
    assert wire.ask("HEAD /api/v1/version", wire.ours).endswith(b"\r\n\r\n")


def test_sizes_are_bounded_and_told(wire: Wire) -> None:
    """A body that is too large, compressed, or ends in two ways; a head that is too large; the answer can be read."""
    post, kind = "POST /api/v1/tool-metrics", "Content-Type: application/json"
    large = b"x" * (BODY_MAX + 1)
    assert wire.status(post, wire.ours, kind, f"Content-Length: {len(large)}", body=large) == 413
    chunk = b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n"
    assert wire.status(post, wire.ours, kind, "Transfer-Encoding: chunked", body=chunk) == 413
    assert wire.status(post, wire.ours, kind, "Content-Encoding: gzip", "Content-Length: 1", body=b"x") == 415
    both = ("Content-Length: 2", "Transfer-Encoding: chunked")
    assert wire.status(post, wire.ours, kind, *both, body=b"{}") == 400
    assert wire.status(post, wire.ours, kind, "Content-Length: 2", "Content-Length: 3", body=b"{}") == 400
    assert wire.status(post, wire.ours, kind, "Content-Length: -2", body=b"{}") == 400
    assert wire.status(post, wire.ours, kind, "Transfer-Encoding: chunked", body=b"zz\r\n") == 400
    assert wire.status("GET /api/v1/version", wire.ours, f"X-Long: {'x' * 2 * HEAD_BYTES_MAX}") == 431
    waits = wire.ask(post, wire.ours, kind, "Content-Length: 2", "Expect: 100-continue", body=b"{}")
    assert waits.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400")


def test_idle_connections_do_not_shut_others_out_for_ever(wire: Wire) -> None:
    """As many idle ones as may be open; the next is closed at once, and when they go there is room again."""
    held = [socket.create_connection(("127.0.0.1", wire.port), timeout=10) for _ in range(CONNECTIONS_MAX)]
    try:
        until(lambda: ask(wire.port, b"") == b"")
    finally:
        for client in held:
            client.close()
    until(lambda: b"200 OK" in wire.ask("GET /api/v1/version", wire.ours))


def test_without_the_setting_no_port_is_open(tmp_path: Path) -> None:
    """Off by default: a daemon listens on no TCP port; and only a loopback address can be set."""
    with opened(tmp_path / "home") as home:
        process = home.start_daemon()
        found = psutil.Process(process.pid).net_connections(kind="inet")
        assert [one.laddr for one in found if one.status == psutil.CONN_LISTEN] == []
    for text in ("0.0.0.0:3002", "3002", "example.com:80", "127.0.0.1:0", "127.0.0.1:99999"):
        with opened(tmp_path / "other", METRICSD_LEGACY_LISTEN=text) as home:
            done = home.run("config", "check")
            assert done.returncode == 2 and "legacy.listen" in done.stderr, text


def test_status_and_reports_show_what_was_written(home: Home, wire: Wire) -> None:
    """A call and a session of the older API are counted by `status`, `report` and `session list`."""
    call = {"event": "x", "timestamp": "2026-01-05T08:01:00Z", "session_id": "shown", "tool_name": "Read"}
    session = {"session_id": "shown", "start_time": "2026-01-05T08:00:00Z", "user": "ann"}
    for path, body in (("sessions", session), ("tool-metrics", call)):
        data = json.dumps(body).encode()
        fields = (wire.ours, "Content-Type: application/json", f"Content-Length: {len(data)}")
        assert wire.status(f"POST /api/v1/{path}", *fields, body=data) == 201
    stored = home.status()["store"]
    assert stored["events"] >= 2 and stored["sessions"] >= 1
    assert home.status()["sync"]["pending_records"] >= 1
    tools = json.loads(home.ok("report", "tools", "--json"))
    assert [one["calls"] for one in tools if one["tool"] == "Read"] == [1]
    sessions = json.loads(home.ok("session", "list", "--json"))
    assert [one["app"] for one in sessions if one["id"] == "shown"] == ["legacy"]
