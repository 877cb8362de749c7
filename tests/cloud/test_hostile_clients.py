"""Hostile clients against a real process over a socket: a clear answer, and memory that stays bounded, seen from outside.

Each kind of attack runs many times over, while an honest device goes on pushing; afterwards the process answers as
before, and has not grown by more than what it may hold of requests at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import zstandard

from metricsd.cloud.connection import CONNECTIONS_MAX, CONNECTIONS_SPARE
from tests.cloud.memory import MIB, PeakMemory
from tests.cloud.processes import ServerProcess
from tests.cloud.support import CloudUnderTest, Device, bearer, event, ok

GROWN_MIB_MAX = 256
"""The budget of requests in flight is 128 MiB; two bodies at once are held twice while they are inflated and decoded."""
ANSWERED_WITHIN_CPU_S = 4.0
"""What the server computes at most while an honest device waits for one answer: its own time, however busy the machine."""
OVERLOADED_WITHIN_S = 20.0
"""What anybody waits at most for an answer of any kind; the clients run on the same machine."""
CLIENTS = 600
CLOSED = 0
"""Instead of a status."""


class Attacked:
    """A cloud in a process of its own, and one honest device of it."""

    def __init__(self, process: ServerProcess, device: Device) -> None:
        self.url = process.url
        self.pid = process.pid
        self.device = device
        self.acked = 0

    def connect(self) -> Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        parts = urlsplit(self.url)
        return asyncio.open_connection(parts.hostname, parts.port)

    async def post(self, body: bytes | AsyncIterator[bytes], **headers: str) -> httpx.Response:
        sent = {**bearer(self.device.token), **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=60) as client:
            return await client.post("/sync/v1/events", content=body, headers=sent)

    async def push_honestly(self, until: asyncio.Task[None]) -> float:
        """Push one event after the other while an attack runs; return the most CPU seconds that an answer waited for."""
        slowest = 0.0
        server = psutil.Process(self.pid)
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=60) as client:
            while not until.done() or not self.acked:
                body = {
                    "device_id": self.device.id,
                    "epoch": 1,
                    "base_seq": self.acked,
                    "events": [event(self.acked + 1)],
                }
                began = cpu_s(server)
                reply = await client.post("/sync/v1/events", json=body, headers=bearer(self.device.token))
                slowest = max(slowest, cpu_s(server) - began)
                if reply.status_code != 503:
                    self.acked = ok(reply)["acked_through"]
                await asyncio.sleep(0.02)
        await until
        return slowest


def cpu_s(process: psutil.Process) -> float:
    """Return how long a process has computed."""
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.fixture
async def attacked(tmp_path: Path) -> AsyncIterator[Attacked]:
    async with CloudUnderTest(tmp_path / "cloud") as cloud:
        device = await cloud.device()
    async with ServerProcess(tmp_path / "cloud", tmp_path / "home") as process:
        yield Attacked(process, device)


async def under_attack(attacked: Attacked, attack: Callable[[], Awaitable[None]]) -> None:
    """Run an attack beside an honest device; the process stays small and the device is served."""

    async def run() -> None:
        await attack()

    with PeakMemory(attacked.pid) as memory:
        slowest = await attacked.push_honestly(asyncio.create_task(run(), name="attack"))
    assert memory.grown_mib < GROWN_MIB_MAX
    assert slowest < ANSWERED_WITHIN_CPU_S
    async with httpx.AsyncClient(base_url=attacked.url, trust_env=False) as client:
        assert "metricsd_cloud_in_flight_bytes 0\n" in (await client.get("/metrics")).text


@cache
def bomb(encoding: str) -> bytes:
    """A body of under 4 MB that inflates to 1 GB."""
    piece = b" " * MIB
    squeeze: Any = (
        zlib.compressobj(9, zlib.DEFLATED, 31)
        if encoding == "gzip"
        else zstandard.ZstdCompressor(level=3).compressobj()
    )
    return b"".join([*(squeeze.compress(piece) for _ in range(1024)), squeeze.flush()])


@cache
def filled(encoding: str) -> bytes:
    """A body that is just within the inflated limit and holds nothing but values."""
    body = b'{"device_id":"d","epoch":1,"base_seq":0,"events":[' + b"[]," * (10 * MIB) + b"1]}"
    return gzip.compress(body, 9) if encoding == "gzip" else zstandard.compress(body, 3)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_bombs(attacked: Attacked, encoding: str) -> None:
    """Sixteen at a time: each is 413 or told to come back."""

    async def attack() -> None:
        for make in (bomb, filled):
            replies = await asyncio.gather(
                *[attacked.post(make(encoding), content_encoding=encoding) for _ in range(16)]
            )
            assert {reply.status_code for reply in replies} <= {413, 503}
            assert all(reply.headers["content-type"] == "application/problem+json" for reply in replies)
            assert any(reply.status_code == 413 for reply in replies)

    await under_attack(attacked, attack)


async def test_a_hundred_thousand_levels(attacked: Attacked) -> None:
    """As a whole body, inside an item, and without an end: 400 that names the limit."""

    async def attack() -> None:
        for body in (
            b"[" * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
            b'{"x":' * 100_000,
            b'{"events":' + b"[" * 100_000,
        ):
            reply = await attacked.post(body)
            assert (reply.status_code, reply.json()["limit"]) == (400, "depth_max")

    await under_attack(attacked, attack)


async def test_a_body_without_end(attacked: Attacked) -> None:
    """Chunked, for ever: 413 once it is longer than what is read on to be polite."""

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    async def attack() -> None:
        for reply in await asyncio.gather(*[attacked.post(chunks()) for _ in range(4)], return_exceptions=True):
            # A client that only writes may find the line cut before it reads.
            assert isinstance(reply, httpx.TransportError) or (
                isinstance(reply, httpx.Response) and reply.json()["limit"] == "body_bytes_max"
            )

    await under_attack(attacked, attack)


async def test_a_head_of_a_megabyte(attacked: Attacked) -> None:
    """431, or the line is cut while the rest is still being sent; the parser never holds it all."""

    async def attack() -> None:
        for _ in range(20):
            reader, writer = await attacked.connect()
            answer = b""
            with contextlib.suppress(ConnectionError):
                writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: " + b"y" * MIB + b"\r\n\r\n")
                await writer.drain()
                answer = await asyncio.wait_for(reader.read(), 10)
            assert answer == b"" or b"head_too_large" in answer
            writer.close()

    await under_attack(attacked, attack)


async def test_two_hundred_slow_clients(attacked: Attacked) -> None:
    """Heads and bodies that come byte by byte hold up nobody; those that stall within their head get 408."""

    async def attack() -> None:
        head = f"POST /sync/v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {attacked.device.token}\r\n"
        slow = [await attacked.connect() for _ in range(200)]
        for number, (_, writer) in enumerate(slow):
            writer.write(head.encode() + (b"x: " if number % 2 else b"content-length: 1000\r\n\r\n{"))
        for _ in range(20):
            for _, writer in slow:
                writer.write(b"x")
            await asyncio.sleep(0.05)
        answer = await asyncio.wait_for(slow[1][0].read(), 20)
        assert (
            answer.startswith(b"HTTP/1.1 408") and json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "slow_head"
        )
        for _, writer in slow:
            writer.close()

    await under_attack(attacked, attack)


async def test_more_clients_than_can_be_served(attacked: Attacked) -> None:
    """Six hundred at the same moment, each with 500 events: stored, or told when to come back; nobody waits for long.

    Those above what is answered at all are closed.
    """

    async def client(number: int) -> tuple[int, float]:
        began = time.monotonic()
        batch = [event(0, call=f"{number}") for _ in range(500)]
        body = json.dumps({"device_id": attacked.device.id, "epoch": 1, "base_seq": 0, "events": batch}).encode()
        head = (
            "POST /sync/v1/events?unsequenced=1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
            f"authorization: Bearer {attacked.device.token}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        reader, writer = await attacked.connect()
        writer.write(head.encode() + body)
        try:
            answer = await asyncio.wait_for(reader.read(), 60)
        except ConnectionError:
            answer = b""
        writer.close()
        status = int(answer.split(b" ")[1]) if answer else CLOSED
        if status == 503:
            assert b"retry-after: " in answer and b"application/problem+json" in answer
        return status, time.monotonic() - began

    async def attack() -> None:
        answers = await asyncio.gather(*[client(number) for number in range(CLIENTS)])
        seen = [status for status, _ in answers]
        assert set(seen) <= {200, 503, CLOSED} and seen.count(200) >= 50
        assert seen.count(CLOSED) <= CLIENTS + 1 - CONNECTIONS_MAX - CONNECTIONS_SPARE
        assert max(took for _, took in answers) < OVERLOADED_WITHIN_S

    await under_attack(attacked, attack)


async def test_clients_that_hang_up_at_every_point(attacked: Attacked) -> None:
    """In the head, in the body, before the answer: nothing of theirs stays, and nothing is logged as a fault."""

    async def attack() -> None:
        body = json.dumps({"device_id": attacked.device.id, "epoch": 1, "base_seq": 0, "events": []}).encode()
        head = f"POST /sync/v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {attacked.device.token}\r\n"
        whole = head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
        for cut in range(0, len(whole), 5):
            _, writer = await attacked.connect()
            writer.write(whole[:cut])
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.transport.abort()

    await under_attack(attacked, attack)
