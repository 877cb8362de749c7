"""Sync of 100,000 events to the embedded cloud: events per second, memory, and the floor beside it.

The cloud is the real one: uvicorn on loopback in a process of its own, committing with FULL before it answers; the
device is the real engine over a real store. The floor is what the same machine needs for the same bytes without us:
JSON encoding, zstd, one loopback HTTP exchange per batch, and one SQLite commit with FULL per batch at either end.
Prints a table, or JSON with --json; exits 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import zstandard

from metricsd.clock import SystemClock
from metricsd.cloud import tenants
from metricsd.cloud.app import create_app
from metricsd.cloud.backend import Scope
from metricsd.cloud.serve import CloudServer
from metricsd.cloud.sqlite import SqliteBackend
from metricsd.config import Cloud, Sync, find_paths
from metricsd.ids import line_id
from metricsd.model import Event, Kind
from metricsd.store import events
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.sync.engine import Engine
from metricsd.sync.login import login

EVENTS = 100_000
RATE_MIN = 5_000
GROWTH_MB_MAX = 60.0
"""Beyond the first tenth, the engine and the cloud may grow by caches, not by the number of events."""
BATCH = 5_000
CHUNK = 10_000
SESSIONS = 200
READY_S = 20.0
TOOLS = ("Read", "Edit", "Bash", "Grep", "mcp__github__create_issue")


def make_events(first: int, count: int, start_us: int) -> list[Identified]:
    """Return typical tool calls: a few hundred sessions, a handful of tools and projects."""
    items = []
    for n in range(first, first + count):
        event = Event(
            at=start_us + n * 1000, kind=Kind.TOOL_USED, name="PostToolUse", app="claude-code",
            session=f"5a0b52c1-0000-4000-8000-{n % SESSIONS:012d}", tool=TOOLS[n % len(TOOLS)], outcome="ok",
            duration_ms=n % 900, call=f"toolu_{n:024x}", project=f"project-{n % 7}", branch="main", subject=".py",
            input_bytes=n % 5000, output_bytes=n % 9000, lines_added=n % 30, lines_removed=n % 9,
        )  # fmt: skip
        items.append(Identified(line_id(b"bench%d" % n, event.at // 1000, 0), event))
    return items


def fill(store: Store, first: int, count: int) -> None:
    """Record events as ingest does, in chunks."""
    start_us = SystemClock().now_us() - 86_400_000_000
    for at in range(first, first + count, CHUNK):
        with store.transaction():
            items = make_events(at, min(CHUNK, first + count - at), start_us)
            events.insert(store, items, device=events.own_device(store))


async def serve(folder: Path) -> None:
    """Be the cloud: print the address and an enrolment token, then serve until stdin closes."""
    settings, clock = Cloud(), SystemClock()
    backend = SqliteBackend(folder, settings, clock)
    server = CloudServer(create_app(backend, settings, clock), settings)
    url = await server.start()
    await tenants.create_tenant(backend.directory, "bench", clock)
    token = await tenants.create_token(backend.directory, "bench", "bench", Scope.ENROL, clock)
    sys.stdout.write(json.dumps({"url": url, "token": token}) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()
    await backend.close()


@asynccontextmanager
async def cloud(folder: Path) -> AsyncIterator[tuple[str, str, psutil.Process]]:
    """Run the cloud in another process; give its address, a token and the process."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.sync", "--serve", str(folder),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stdin is not None
    try:
        said = json.loads(await asyncio.wait_for(child.stdout.readline(), READY_S))
        yield said["url"], said["token"], psutil.Process(child.pid)
    finally:
        child.stdin.close()
        await asyncio.wait_for(child.wait(), READY_S)


def peak_mb() -> float:
    """Return this process's peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform != "darwin" else 1024) / 1024


async def measure(root: Path, count: int) -> dict[str, float]:
    """Sync a tenth to warm up, then the rest on the clock; return the figures."""
    paths = find_paths({"METRICSD_HOME": str(root / "home")})
    store = Store.open(paths.store)
    async with cloud(root / "cloud") as (url, token, server):
        await login(paths, url, token, "bench", Sync())
        engine = Engine(paths, store, Sync())
        fill(store, 0, count // 10)
        assert (await engine.tick(reason="now")).ok
        fill(store, count // 10, count)
        before = peak_mb(), server.memory_info().rss / 2**20
        began = time.perf_counter()
        report = await engine.tick(reason="now")
        took_s = time.perf_counter() - began
        assert report.ok and report.pushed_events == count, report
        figures = {
            "events_per_s": round(count / took_s),
            "took_s": round(took_s, 2),
            "engine_peak_mb": round(peak_mb(), 1),
            "engine_growth_mb": round(peak_mb() - before[0], 1),
            "cloud_growth_mb": round(server.memory_info().rss / 2**20 - before[1], 1),
        }
        await engine.close()
    store.close()
    return figures


async def floor(root: Path, count: int) -> float:
    """Return events per second of the bare work: encode, compress, exchange, insert and commit at both ends."""
    rows = make_events(0, min(count, BATCH), 0)
    answers = sqlite3.connect(root / "floor-cloud.db", isolation_level=None)
    marks = sqlite3.connect(root / "floor-device.db", isolation_level=None)
    for db in (answers, marks):
        db.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE e (id BLOB PRIMARY KEY, body TEXT)"
        )
    decode = msgspec.json.Decoder(list[Event]).decode

    batches = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal batches
        while size := await reader.read(4):
            batches += 1
            body = await reader.readexactly(int.from_bytes(size, "big"))
            got = decode(zstandard.ZstdDecompressor().decompress(body))
            answers.execute("BEGIN")
            answers.executemany(
                "INSERT OR REPLACE INTO e VALUES (?, ?)", [(f"{batches}{event.call}", str(event.at)) for event in got]
            )
            answers.execute("COMMIT")
            writer.write(b"ok")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        began = time.perf_counter()
        sent = 0
        while sent < count:
            body = zstandard.ZstdCompressor(level=1).compress(msgspec.json.encode([item.event for item in rows]))
            writer.write(len(body).to_bytes(4, "big") + body)
            await reader.readexactly(2)
            marks.execute("INSERT OR REPLACE INTO e VALUES (x'00', ?)", (str(sent),))
            sent += len(rows)
        took_s = time.perf_counter() - began
        writer.close()
        await writer.wait_closed()
    answers.close()
    marks.close()
    return sent / took_s


def main() -> int:
    """Measure, print one JSON line, and say by the exit code whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), options.events))
        figures["floor_events_per_s"] = round(asyncio.run(floor(Path(folder), options.events)))
    growth = max(figures["engine_growth_mb"], figures["cloud_growth_mb"])
    good = figures["events_per_s"] >= RATE_MIN and growth <= GROWTH_MB_MAX
    if options.json:
        print(json.dumps({"bench": "sync", "ok": good, "events": options.events, **figures}))
        return 0 if good else 1
    print(f"sync, {options.events:,} events to the embedded cloud in {figures['took_s']} s, FULL at both ends")
    print(
        f"  events a second   {figures['events_per_s']:>9,}    (at least {RATE_MIN:,}; bare loop {figures['floor_events_per_s']:,})"
    )
    print(
        f"  engine grew by    {figures['engine_growth_mb']:>9} MB (at most {GROWTH_MB_MAX:g}; peak {figures['engine_peak_mb']})"
    )
    print(f"  cloud grew by     {figures['cloud_growth_mb']:>9} MB (at most {GROWTH_MB_MAX:g})")
    print("  ok" if good else "  FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
