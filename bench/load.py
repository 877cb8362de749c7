"""A load generator for the cloud: clients on kept connections that send prepared requests and read the answers.

It does as little as HTTP/1.1 allows, because it shares the machine with what it measures: requests are bytes that were
made before the clock started, and of an answer only the status and the length are looked at.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

ANSWER_TIMEOUT_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Load(NamedTuple):
    """What a run measured: requests a second, answer times in milliseconds, the server's CPU a request."""

    requests: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def request(method: str, path: str, token: str, body: bytes = b"", **headers: str) -> bytes:
    """Return one HTTP request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: bench", f"authorization: Bearer {token}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> bytes:
    """Send one request and return the body of its answer; raise RuntimeError unless it is 200."""
    writer.write(sent)
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        head = await reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        body = await reader.readexactly(int(found[1])) if found else b""
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not 200: {head[:60]!r} {body[:200]!r}")
    return body


async def run(url: str, clients: Sequence[Sequence[bytes]], seconds: float, server_pid: int) -> Load:
    """Let each client send its requests one after the other, until they are used up or the time is over."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    server = psutil.Process(server_pid)
    connections = [await asyncio.open_connection(host, port) for _ in clients]
    times: list[float] = []
    cpu = sum(server.cpu_times()[:2])
    began = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = connections[number]
        for each in clients[number]:
            at = time.perf_counter()
            if at - began > seconds:
                return
            await send(reader, writer, each)
            times.append(time.perf_counter() - at)

    await asyncio.gather(*[client(number) for number in range(len(clients))])
    took = time.perf_counter() - began
    cpu = sum(server.cpu_times()[:2]) - cpu
    for _, writer in connections:
        writer.close()
    times.sort()
    count = len(times)
    return Load(
        count / took, times[count // 2] * 1000, times[min(count - 1, count * 99 // 100)] * 1000, cpu / count * 1e6
    )
