"""How fast the cloud takes events on SQLite with synchronous=FULL, beside a bare sqlite3 loop on the same disk.

Everything runs on this machine: a server process, and clients that send prepared zstd bodies over loopback. The floor
is the same rows in bare sqlite3 with the same commits and nothing else: no HTTP, no JSON, no ids to compare. Run it
with `python -m bench.cloud [--seconds N]`; the figures of one run belong together.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import psutil
import zstandard

from metricsd.clock import SystemClock
from metricsd.cloud import tenants
from metricsd.cloud.app import create_app
from metricsd.cloud.backend import Scope
from metricsd.cloud.serve import CloudServer
from metricsd.cloud.sqlite import SqliteBackend
from metricsd.config import Cloud
from metricsd.protocol import PushEvents, WireEvent

CASES = ((50, 1), (50, 8), (500, 1), (500, 4), (5000, 1), (5000, 2))
"""(events a batch, clients at once)."""
BODIES_MAX = 4000
EVENTS_PREPARED = 40_000
"""Events a second that are made ready before the clock starts: more than any case can take."""
START_TIMEOUT_S = 20.0
EVENTS_PER_S_MIN = 5000
"""What a first sync of a long history needs, in batches of 500 and more."""
_HEAD = f"{'batch':>6} {'clients':>7} {'batches/s':>10} {'events/s':>10} {'p50 ms':>8} {'p99 ms':>8}"
_SCHEMA = """
CREATE TABLE event (change INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, user INTEGER, device INTEGER, epoch INTEGER,
  seq INTEGER, at INTEGER, kind INTEGER, name INTEGER, app INTEGER, session INTEGER, tool INTEGER, outcome INTEGER,
  duration_ms INTEGER, call TEXT, project INTEGER, branch INTEGER, model INTEGER, lines_added INTEGER);
CREATE UNIQUE INDEX event_position ON event (device, epoch, seq);
CREATE INDEX event_feed ON event (user);
"""


class Result(NamedTuple):
    """One case: batches and events a second, answer times in milliseconds, server CPU a batch in microseconds."""

    batches: float
    events: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def event_at(seq: int) -> WireEvent:
    """Return an event as a hook of a coding tool makes it, with an id in time order."""
    at = 1_790_000_000_000 + seq
    return WireEvent(
        id=at.to_bytes(6, "big").hex() + secrets.token_hex(10),
        at=at * 1000,
        kind="tool_used",
        name="PostToolUse",
        app="claude-code",
        seq=seq,
        session=f"0d6c{seq // 200:032x}",
        tool=("Bash", "Read", "Edit", "Write")[seq % 4],
        outcome="ok",
        duration_ms=seq % 977,
        call=f"toolu_{secrets.token_hex(12)}",
        project="h:5f0c3a77",
        branch="h:91aa04de",
        model="claude-sonnet",
        lines_added=seq % 7,
    )


def bodies_of(device: str, size: int, count: int) -> list[bytes]:
    """Return `count` batches of one stream, compressed as a client does."""
    squeeze = zstandard.ZstdCompressor(level=1)
    made = []
    for number in range(count):
        first = number * size
        batch = [event_at(first + offset + 1) for offset in range(size)]
        push = PushEvents(device_id=device, epoch=1, base_seq=first, events=batch)
        made.append(squeeze.compress(msgspec.json.encode(push)))
    return made


def floor(folder: Path, size: int, seconds: float) -> float:
    """Return events a second of bare sqlite3: WAL, FULL, one commit a batch, the same indexes."""
    db = sqlite3.connect(folder / "floor.db", isolation_level=None)
    db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {_SCHEMA}")
    began, total = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        rows = []
        for seq in range(total + 1, total + size + 1):
            key = seq.to_bytes(6, "big") + os.urandom(10)
            rows.append(
                (
                    seq,
                    key,
                    1,
                    1,
                    1,
                    seq,
                    seq,
                    1,
                    2,
                    3,
                    seq // 200,
                    5,
                    6,
                    7,
                    "toolu_0123456789abcdef01234567",
                    8,
                    9,
                    10,
                    11,
                )
            )
        db.execute("BEGIN IMMEDIATE")
        db.executemany(f"INSERT INTO event VALUES ({','.join('?' * 19)})", rows)
        db.execute("COMMIT")
        total += size
    db.close()
    (folder / "floor.db").unlink()
    return total / took


async def run_case(size: int, clients: int, seconds: float) -> Result:
    """Push for some seconds against a server in its own process."""
    with tempfile.TemporaryDirectory() as name:
        token = await _prepare(Path(name))
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.cloud", "--serve", name), stdout=asyncio.subprocess.PIPE
        )
        try:
            url = await _url_of(server)
            devices = await _enrol(url, token, clients)
            count = min(BODIES_MAX, max(10, int(seconds * EVENTS_PREPARED / size / clients)))
            prepared = [bodies_of(device, size, count) for device, _ in devices]
            return await _measure(url, devices, prepared, size, seconds, psutil.Process(server.pid))
        finally:
            server.terminate()
            await server.wait()


async def _measure(
    url: str,
    devices: list[tuple[str, str]],
    prepared: list[list[bytes]],
    size: int,
    seconds: float,
    server: psutil.Process,
) -> Result:
    times: list[float] = []
    began, cpu = time.perf_counter(), sum(server.cpu_times()[:2])

    async def client(token: str, bodies: list[bytes]) -> None:
        headers = {"authorization": f"Bearer {token}", "content-encoding": "zstd"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60) as http:
            for body in bodies:
                sent = time.perf_counter()
                if sent - began > seconds:
                    return
                reply = await http.post("/sync/v1/events", content=body)
                reply.raise_for_status()
                times.append(time.perf_counter() - sent)

    await asyncio.gather(*[client(token, bodies) for (_, token), bodies in zip(devices, prepared, strict=True)])
    took = time.perf_counter() - began
    cpu = sum(server.cpu_times()[:2]) - cpu
    times.sort()
    count = len(times)
    return Result(
        count / took,
        count * size / took,
        times[count // 2] * 1000,
        times[min(count - 1, count * 99 // 100)] * 1000,
        cpu / count * 1e6,
    )


async def _prepare(folder: Path) -> str:
    """Make the tenant; return an enrolment token."""
    clock = SystemClock()
    backend = SqliteBackend(folder, Cloud())
    await tenants.create_tenant(backend.directory, "bench", clock)
    token = await tenants.create_token(backend.directory, "bench", "ann", Scope.ENROL, clock)
    await backend.close()
    return token


async def _url_of(server: asyncio.subprocess.Process) -> str:
    if server.stdout is None:
        raise RuntimeError("the server has no output")
    line = await asyncio.wait_for(server.stdout.readline(), START_TIMEOUT_S)
    return line.decode().strip()


async def _enrol(url: str, token: str, count: int) -> list[tuple[str, str]]:
    """Return (device, token) pairs."""
    devices = []
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        for number in range(count):
            body, headers = {"name": f"d{number}"}, {"authorization": f"Bearer {token}"}
            reply = (await http.post("/sync/v1/devices", json=body, headers=headers)).json()
            devices.append((reply["device_id"], reply["device_token"]))
    return devices


async def _serve(folder: Path) -> None:
    backend = SqliteBackend(folder, Cloud())
    server = CloudServer(create_app(backend, Cloud()), Cloud())
    print(await server.start(), flush=True)
    await server.wait()


def main() -> int:
    """Print one line for each case, with its floor; return 1 when large batches are below the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--serve", type=Path)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(_serve(options.serve))
        return 0
    slowest = float("inf")
    print(f"{_HEAD} {'CPU us/batch':>12} {'floor ev/s':>11} {'ratio':>6}")
    for size, clients in CASES:
        with tempfile.TemporaryDirectory() as name:
            bare = floor(Path(name), size, options.seconds / 2)
        got = asyncio.run(run_case(size, clients, options.seconds))
        slowest = min(slowest, got.events) if size >= 500 else slowest
        print(
            f"{size:>6} {clients:>7} {got.batches:>10.0f} {got.events:>10.0f} {got.p50_ms:>8.1f} {got.p99_ms:>8.1f}"
            f" {got.cpu_us:>12.0f} {bare:>11.0f} {got.events / bare:>6.2f}"
        )
    print(f"limit: {EVENTS_PER_S_MIN} events/s in batches of 500 and more; slowest {slowest:.0f}")
    return 0 if slowest >= EVENTS_PER_S_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
