"""The daemon's own figures: true, bounded, and readable from this machine alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd import control
from metricsd.failover import Mode
from metricsd.local_metrics import Figures, StoreFigures, render
from metricsd.loopback import CONNECTIONS_MAX, HEAD_BYTES_MAX, parse_address
from metricsd.spool import Pending
from tests.homes import Home, opened, tool_use, until

LINE = re.compile(r'metricsd_[a-z_]+(\{[a-z]+="[^"]*"\})? -?[0-9.e+-]+')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home", METRICSD_DAEMON_METRICS_LISTEN=f"127.0.0.1:{free_port()}") as made:
        yield made


def port_of(home: Home) -> int:
    return int(home.env["METRICSD_DAEMON_METRICS_LISTEN"].rpartition(":")[2])


def ask(port: int, raw: bytes) -> bytes:
    """Send bytes as they are; return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        parts = []
        # A server that closes early may reset what it did not read; what it said counts.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(raw)
            while part := client.recv(65536):
                parts.append(part)
        return b"".join(parts)


def test_the_socket_and_the_page_give_the_same_true_figures(home: Home) -> None:
    """What is stored, what waits and the mode, by the verb, by the command and over HTTP."""
    home.start_daemon()
    for number in range(3):
        home.capture("PostToolUse", tool_use(number))
    until(lambda: home.events() == 3)
    text = control.call(home.paths.state_dir, "metrics", timeout_s=10)["text"]
    for line in (
        "metricsd_store_events 3",
        "metricsd_ready 1",
        'metricsd_mode{mode="local_only"} 1',
        "metricsd_logged_in 0",
    ):
        assert line in text.splitlines()
    connection = http.client.HTTPConnection("127.0.0.1", port_of(home), timeout=10)
    until(lambda: _is_open(port_of(home)))
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    assert answer.status == 200 and "version=0.0.4" in str(answer.headers["Content-Type"])
    assert answer.headers["Access-Control-Allow-Origin"] is None
    names = [line.split()[0] for line in text.splitlines() if not line.startswith("#")]
    assert names == [line.split()[0] for line in body.splitlines() if not line.startswith("#")]
    assert names == [
        line.split()[0] for line in home.ok("status", "--metrics").splitlines() if not line.startswith("#")
    ]


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_only_this_machines_names_for_it_are_answered(home: Home) -> None:
    """A page from elsewhere cannot read it: no other Host, no Origin, no cross-site request, whatever the form."""
    home.start_daemon()
    port = port_of(home)
    until(lambda: _is_open(port))

    def status(*fields: str, first: str = "GET /metrics HTTP/1.1") -> int:
        raw = "\r\n".join([first, *fields, "", ""]).encode()
        return int(ask(port, raw).split(b" ")[1])

    for good in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert status(f"Host: {good}") == 200
    bad = (
        "attacker.example", f"attacker.example:{port}", "127.0.0.1", "localhost", f"127.0.0.1.evil:{port}", "",
        f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}@evil", f"[::1]:{port}.evil", f"LOCALHOST:{port}x", f"127.1:{port}",
        f"user@127.0.0.1:{port}", "[::1]",
    )  # fmt: skip
    for host in bad:
        assert status(f"Host: {host}") == 403, host
    ours = f"Host: 127.0.0.1:{port}"
    assert status() == 403
    assert status(ours, "Host: attacker.example") == 403
    assert status(ours, ours) == 403
    assert status(ours, "Origin: https://attacker.example") == 403
    assert status(ours, "Origin: null") == 403
    assert status(ours, "Sec-Fetch-Site: cross-site") == 403
    assert status(ours, "Sec-Fetch-Site: none") == 200
    assert status(ours, first="GET / HTTP/1.1") == 404
    assert status(ours, first="GET http://attacker.example/metrics HTTP/1.1") == 404
    assert status(ours, first="POST /metrics HTTP/1.1") == 405
    assert status(ours, first="nonsense") == 400
    assert ask(port, f"HEAD /metrics HTTP/1.1\r\n{ours}\r\n\r\n".encode()).endswith(b"\r\n\r\n")
    assert status(ours, f"X-Long: {'x' * 2 * HEAD_BYTES_MAX}") == 431


def test_silent_clients_keep_nobody_out(home: Home) -> None:
    """Connections that say nothing take places for a bounded time; the daemon goes on meanwhile."""
    home.start_daemon()
    port = port_of(home)
    until(lambda: _is_open(port))
    with contextlib.ExitStack() as silent:
        for _ in range(CONNECTIONS_MAX + 4):
            silent.enter_context(socket.create_connection(("127.0.0.1", port)))
        home.capture("PostToolUse", tool_use(1))
        until(lambda: home.events() == 1)
        request = f"GET /metrics HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
        assert until(lambda: b"200 OK" in ask(port, request))


def test_a_taken_port_does_not_stop_the_daemon(home: Home) -> None:
    """It is said in the log, and everything else works."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", port_of(home)))
        other.listen()
        home.start_daemon()
        home.capture("PostToolUse", tool_use(1))
        until(lambda: home.events() == 1)
        until(lambda: "metrics.not_served" in home.ok("logs"))


def test_nothing_listens_by_default(tmp_path: Path) -> None:
    """No port without a setting, and none that others could reach with one."""
    assert parse_address("") is None
    for text in (
        "0.0.0.0:9000",
        "192.168.0.1:80",
        ":9000",
        "9000",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "[::]:80",
        "::1:80",
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            parse_address(text)
        with opened(tmp_path / "home", METRICSD_DAEMON_METRICS_LISTEN=text) as home:
            done = home.run("config", "check")
            assert done.returncode == 2 and "metrics_listen" in done.stderr, text


def test_every_line_is_of_the_format_and_labels_are_bounded() -> None:
    """The same series whatever the figures are, so that no scraper's memory grows with what a user does."""

    def made(number: int, mode: Mode) -> list[str]:
        store = StoreFigures(number, number, number, number, number, number, number)
        figures = Figures(mode, True, True, True, True, Pending(number, number, number), 0.5, store, number, 1.5)
        return render(figures).splitlines()

    few, many = made(0, Mode.HYBRID), made(10**12, Mode.REMOTE_ONLY)
    for line in [*few, *many]:
        assert line.startswith("#") or LINE.fullmatch(line), line
    assert [line.split()[0] for line in few if line[0] != "#"] == [line.split()[0] for line in many if line[0] != "#"]


def test_a_store_that_cannot_be_read_leaves_the_rest() -> None:
    """`store_up` says so; the figures that only the store knows are not invented."""
    figures = Figures(Mode.REMOTE_ONLY, False, True, False, True, Pending(1, 2, 3), 0.0, None, 0, 1.0)
    text = render(figures)
    assert "metricsd_store_up 0" in text and "store_events" not in text


def test_the_page_names_nobody(home: Home) -> None:
    """No project, tool, session or device is in it."""
    home.start_daemon()
    home.ok(
        "record", "PostToolUse", json.dumps({"tool_name": "SecretTool", "session_id": "secret-session", "cwd": "/p"})
    )
    until(lambda: home.events() == 1)
    text = home.ok("status", "--metrics").lower()
    assert "secret" not in text and "/p" not in text.replace("/proc", "")
