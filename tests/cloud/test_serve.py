"""The cloud on a real socket: start and stop, slow clients, and kill -9 under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import zstandard

from metricsd.cloud import connection, serve
from metricsd.cloud.app import create_app
from metricsd.cloud.serve import CloudServer
from metricsd.errors import UsageError
from tests.cloud.processes import DEADLINE_S, Nursery, ServerProcess
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
    """On a new connection and on one that has served a request: 408 once a part of it came, else a plain end."""
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.1)
    for before in (b"", b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"):
        if before and not sent:
            continue  # an idle connection is not a slow head
        reader, writer = await asyncio.open_connection(*address_of(server[0]))
        if before:
            writer.write(before)
            await reader.readuntil(b'"ok"}')
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 5)
        if sent:
            assert refusal(answer) == (408, "slow_head") and b'"limit":"head_timeout_s"' in answer
        else:
            assert answer == b""
        writer.close()


async def test_a_head_without_end_is_cut(server: tuple[str, CloudUnderTest]) -> None:
    """Headers are bounded in bytes, before they are complete."""
    reader, writer = await asyncio.open_connection(*address_of(server[0]))
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n")
    # A little above the limit: what is sent after the end would turn the answer into a reset.
    writer.write(b"x: " + b"y" * (connection.HEAD_BYTES_MAX + 10) + b"\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert refusal(answer) == (431, "head_too_large")
    writer.close()


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"HELO there\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
async def test_what_is_not_http_gets_a_problem_document(server: tuple[str, CloudUnderTest], sent: bytes) -> None:
    """Like every other refusal, and the connection ends."""
    reader, writer = await asyncio.open_connection(*address_of(server[0]))
    writer.write(sent)
    assert refusal(await asyncio.wait_for(reader.read(), 5)) == (400, "bad_http")
    writer.close()


async def test_a_connection_too_many_is_answered(cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 that names the limit and says when to come back, and room again once others have gone."""
    monkeypatch.setattr(serve, "CONNECTIONS_MAX", 2)
    app: Any = create_app(cloud.backend, cloud.settings._replace(streams_max=0), cloud.clock)
    running = CloudServer(app, cloud.settings._replace(streams_max=0))
    url = await running.start()
    held = [await asyncio.open_connection(*address_of(url)) for _ in range(2)]
    for reader, writer in held:
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        await reader.readuntil(b'"ok"}')
    async with http(url) as client:
        reply = await client.get("/healthz")
        assert reply.status_code == 503 and int(reply.headers["retry-after"]) > 0
        assert reply.json()["limit"] == "connections_max"
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    deadline = time.monotonic() + 5
    async with http(url) as client:
        while (await client.get("/healthz")).status_code != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    await running.stop()


async def test_an_answer_that_is_not_read_is_given_up(
    server: tuple[str, CloudUnderTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends, and with it what it held."""
    monkeypatch.setattr(connection, "SEND_TIMEOUT_S", 0.1)
    url, cloud = server
    device, other = await cloud.device(), await cloud.device()
    await other.push(events(1000, session="s" * 400))
    # A small receive buffer, and nobody who reads.
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(address_of(url))
    ask = f"GET /sync/v1/changes HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {device.token}\r\n\r\n"
    sock.sendall(ask.encode() * 20)
    deadline = time.monotonic() + 10
    while True:
        try:
            sock.send(b"x")
        except OSError:
            break
        assert time.monotonic() < deadline, "still connected"
        await asyncio.sleep(0.02)
    sock.close()
    async with http(url) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_not_ready_is_said_before_the_door_is_shut(cloud: CloudUnderTest) -> None:
    """While a stop is announced /readyz says no and requests are still answered."""
    settings = cloud.settings._replace(drain_notice_s=0.5)
    app: Any = create_app(cloud.backend, settings, cloud.clock)
    running = CloudServer(app, settings)
    url = await running.start()
    async with http(url) as client:
        assert (await client.get("/readyz")).status_code == 200
        stop = asyncio.create_task(running.stop())
        await asyncio.sleep(0)
        reply = await client.get("/readyz")
        assert (reply.status_code, reply.json()["code"]) == (503, "draining")
        assert (await client.get("/healthz")).status_code == 200
    await stop


def refusal(answer: bytes) -> tuple[int, str]:
    """Return (status, code) of a raw answer, which must be a problem document."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    return int(head.split(b" ")[1]), json.loads(body)["code"]


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


async def test_what_was_acknowledged_survives_kill_nine(cloud_place: Path | str, tmp_path: Path) -> None:
    """Four devices push without pause while the server is killed fifty times: nothing acknowledged is missing, nothing
    is doubled, and devices that only repeat what was not answered end with whole streams."""
    await _kill_again_and_again(cloud_place, tmp_path / "home", 50)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_what_was_acknowledged_survives_five_hundred_kills(cloud_place: Path | str, tmp_path: Path) -> None:
    """The same, five hundred times."""
    await _kill_again_and_again(cloud_place, tmp_path / "home", 500)


async def _kill_again_and_again(place: Path | str, home: Path, times: int) -> None:
    async with CloudUnderTest(place) as cloud:
        pushers = [_Pusher(await cloud.device()) for _ in range(4)]
        reader = await cloud.device()
    # A killed process loses what it took of the minute's allowance, so there is none here.
    unlimited = {"CLOUD_TENANT_REQUESTS_PER_MINUTE": "0", "CLOUD_TENANT_BYTES_PER_MINUTE": "0"}
    async with Nursery(place, home, **unlimited) as nursery:
        for _ in range(times):
            async with http(await nursery.start()) as client:
                wanted = sum(pusher.acked for pusher in pushers) + random.randint(10, 400)
                tasks = [asyncio.create_task(pusher.run(client)) for pusher in pushers]
                # A device that was refused has failed already, and would keep the others waiting.
                refused = asyncio.create_task(_first_failure(tasks))
                await _until(lambda: refused.done() or sum(pusher.acked for pusher in pushers) >= wanted)  # noqa: B023
                await nursery.kill()
                await refused
                await asyncio.gather(*tasks)
    async with CloudUnderTest(place) as cloud:
        seen = [item["event"]["id"] for item in await reader.on(cloud).feed()]
        assert len(seen) == len(set(seen))
        for pusher in pushers:
            told = await pusher.device.on(cloud).hello(acked_seq=pusher.acked)
            assert told["last_seq"] >= pusher.acked
            assert told["id_at_acked"] == pusher.sent[pusher.acked - 1]["id"]
            assert set(seen) >= {item["id"] for item in pusher.sent[: pusher.acked]}
    if isinstance(place, Path):
        [file] = place.glob("t_*.db")
        with sqlite3.connect(file) as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        db.close()


async def test_sigterm_under_load_answers_what_it_took(tmp_path: Path) -> None:
    """Requests that were under way are stored and answered, the command ends with 0, and nothing is missing."""
    folder, home = tmp_path / "cloud", tmp_path / "home"
    async with CloudUnderTest(folder) as cloud:
        pushers = [_Pusher(await cloud.device()) for _ in range(4)]
    for _ in range(3):
        async with ServerProcess(folder, home) as process, http(process.url) as client:
            before = sum(pusher.acked for pusher in pushers)
            tasks = [asyncio.create_task(pusher.run(client)) for pusher in pushers]
            await _until(lambda: sum(pusher.acked for pusher in pushers) >= before + 200)  # noqa: B023
            assert await process.end(signal.SIGTERM) == 0
            await asyncio.gather(*tasks)
    async with CloudUnderTest(folder) as cloud:
        for pusher in pushers:
            # Not one batch that was stored and not answered: whoever was taken in heard of it.
            assert (await pusher.device.on(cloud).hello())["last_seq"] == pusher.acked


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


async def _first_failure(tasks: list[asyncio.Task[None]]) -> None:
    """Return when all tasks have ended; raise at once what ends one of them."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        if task.done():
            task.result()


async def _until(holds: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s"
        await asyncio.sleep(0.005)
