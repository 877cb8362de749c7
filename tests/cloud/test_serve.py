"""The cloud on a real socket: start and stop, slow clients, and kill -9 under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import zstandard

from metricsd.cloud import serve
from metricsd.cloud.app import create_app
from metricsd.cloud.serve import CloudServer
from metricsd.errors import UsageError
from tests.cloud.processes import ServerProcess
from tests.cloud.support import CloudUnderTest, Device, bearer, event, events, ok


@pytest.fixture
async def server(cloud: CloudUnderTest) -> AsyncIterator[tuple[str, CloudUnderTest]]:
    app: Any = create_app(cloud.backend, cloud.settings, cloud.clock)
    running = CloudServer(app, cloud.settings)
    url = await running.start()
    yield url, cloud
    await running.stop()


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


def http(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=20)


async def test_a_device_talks_over_a_socket(server: tuple[str, CloudUnderTest]) -> None:
    """The same app behind a real server: compressed bodies, keep-alive, no server name in the answers."""
    url, cloud = server
    device = await cloud.device()
    body = {"device_id": device.id, "epoch": 1, "base_seq": 0, "events": events(50)}
    packed = zstandard.compress(json.dumps(body).encode())
    async with http(url) as client:
        for _ in range(3):
            reply = await client.post(
                "/sync/v1/events", content=packed, headers={**bearer(device.token), "content-encoding": "zstd"}
            )
            assert ok(reply)["acked_through"] == 50
        assert "server" not in reply.headers


async def test_a_body_above_the_limit_gets_its_answer(server: tuple[str, CloudUnderTest]) -> None:
    """The sender reads 413, not a broken pipe."""
    url, cloud = server
    device = await cloud.device()
    async with http(url) as client:
        reply = await client.post(
            "/sync/v1/events", content=b" " * (cloud.settings.body_bytes_max + 1), headers=bearer(device.token)
        )
    assert reply.status_code == 413 and reply.json()["limit"] == "body_bytes_max"


async def test_stopping_lets_an_open_request_finish(cloud: CloudUnderTest) -> None:
    """A request whose body is still coming is answered; a new connection is not taken."""
    app: Any = create_app(cloud.backend, cloud.settings, cloud.clock)
    begun, stopping = asyncio.Event(), asyncio.Event()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await app(scope, receive, send)

    running = CloudServer(watched, cloud.settings)
    url = await running.start()
    device = await cloud.device()
    body = json.dumps({"device_id": device.id, "epoch": 1, "base_seq": 0, "events": events(3)}).encode()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:20]
        await stopping.wait()
        yield body[20:]

    async with http(url) as client:
        sending = asyncio.create_task(
            client.post("/sync/v1/events", content=slow(), headers={**bearer(device.token), "connection": "close"})
        )
        await begun.wait()
        stop = asyncio.create_task(running.stop())
        await _refused(*address_of(url))
        stopping.set()
        assert ok(await sending)["acked_through"] == 3
    await stop


async def _refused(host: str, port: int) -> None:
    """Wait until no new connection is taken."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            return
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await asyncio.sleep(0.02)
    raise AssertionError("the server still takes connections")


async def test_a_taken_port_is_one_clear_line(server: tuple[str, CloudUnderTest]) -> None:
    """It says what to change."""
    url, cloud = server
    host, port = address_of(url)
    app: Any = create_app(cloud.backend, cloud.settings)
    with pytest.raises(UsageError, match=f"cannot listen on {host}:{port}.*--port"):
        await CloudServer(app, cloud.settings, host=host, port=port).start()


@pytest.mark.parametrize("sent", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: "])
async def test_a_head_that_does_not_come_is_given_up(
    server: tuple[str, CloudUnderTest], sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a new connection and on one that has served a request."""
    monkeypatch.setattr(serve, "HEAD_TIMEOUT_S", 0.1)
    for before in (b"", b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"):
        if before and not sent:
            continue  # an idle connection is not a slow head
        reader, writer = await asyncio.open_connection(*address_of(server[0]))
        if before:
            writer.write(before)
            await reader.readuntil(b'"ok"}')
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_a_head_without_end_is_cut(server: tuple[str, CloudUnderTest]) -> None:
    """Headers are bounded in bytes, before they are complete."""
    reader, writer = await asyncio.open_connection(*address_of(server[0]))
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n")
    with contextlib.suppress(ConnectionError):
        for _ in range(200):
            writer.write(b"x: " + b"y" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_client_that_sends_a_byte_at_a_time_holds_up_nobody(server: tuple[str, CloudUnderTest]) -> None:
    """Others are answered meanwhile."""
    url, cloud = server
    device = await cloud.device()
    _, writer = await asyncio.open_connection(*address_of(url))
    writer.write(
        b"POST /sync/v1/events HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\nauthorization: Bearer "
        + device.token.encode()
        + b"\r\n\r\n{"
    )
    async with http(url) as client:
        for _ in range(20):
            writer.write(b" ")
            assert (await client.get("/healthz")).status_code == 200
    writer.close()


async def test_sigterm_ends_the_command_with_zero(tmp_path: Path) -> None:
    """The one line it prints is the URL, where it answers at once."""
    async with ServerProcess(tmp_path / "cloud", tmp_path / "home") as process:
        async with http(process.url) as client:
            assert (await client.get("/readyz")).status_code == 200
        began = time.monotonic()
        assert await process.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 5


async def test_what_was_acknowledged_survives_kill_nine(tmp_path: Path) -> None:
    """Four devices push without pause while the server is killed again and again: nothing acknowledged is missing,
    nothing is doubled, and devices that only repeat what was not answered end with whole streams."""
    folder, home = tmp_path / "cloud", tmp_path / "home"
    async with CloudUnderTest(folder) as cloud:
        pushers = [_Pusher(await cloud.device()) for _ in range(4)]
        reader = await cloud.device()
    for _ in range(5):
        async with ServerProcess(folder, home) as process, http(process.url) as client:
            acked_before = sum(pusher.acked for pusher in pushers)
            tasks = [asyncio.create_task(pusher.run(client)) for pusher in pushers]
            await _until(lambda: sum(pusher.acked for pusher in pushers) >= acked_before + 400)  # noqa: B023
            await process.end(signal.SIGKILL)
            await asyncio.gather(*tasks)
    async with CloudUnderTest(folder) as cloud:
        seen = [item["event"]["id"] for item in await reader.on(cloud).feed()]
        assert len(seen) == len(set(seen))
        for pusher in pushers:
            told = await pusher.device.on(cloud).hello(acked_seq=pusher.acked)
            assert told["last_seq"] >= pusher.acked
            assert told["id_at_acked"] == pusher.sent[pusher.acked - 1]["id"]
            assert set(seen) >= {item["id"] for item in pusher.sent[: pusher.acked]}
    [file] = folder.glob("t_*.db")
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    db.close()


class _Pusher:
    """A device that pushes batches, repeating the one that was not answered."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.sent: list[dict[str, Any]] = []
        self.acked = 0

    async def run(self, client: httpx.AsyncClient) -> None:
        """Push until the connection breaks."""
        while True:
            while len(self.sent) < self.acked + 10:
                self.sent.append(event(len(self.sent) + 1))
            body = {
                "device_id": self.device.id,
                "epoch": 1,
                "base_seq": self.acked,
                "events": self.sent[self.acked : self.acked + 10],
            }
            try:
                reply = await client.post("/sync/v1/events", json=body, headers=bearer(self.device.token))
            except httpx.TransportError:
                return
            self.acked = ok(reply)["acked_through"]


async def _until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "not within 20 s"
        await asyncio.sleep(0.005)
