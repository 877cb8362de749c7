"""The older API on the daemon's port over a long history: answers at the socket, beside reading them by a full scan.

    python -m bench.older_api [--events N] [--days N] [--sessions N] [--rounds N] [--json]

The store is made once in a throw-away home and served by a real daemon. Each GET is asked on one kept connection, once
with nothing written in between (`calm`) and once after a call was written each time (`fresh`), for which
figures are put together anew. Floors from the same run: `version`, which asks no database, and an fsync of a small file,
which every write has to wait for. Limits: p50 5 ms and p99 25 ms for every calm GET, 1,000 calls a second from 32
clients, 20 ms for a batch of 100.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import fill
from metricsd.analytics import overview
from metricsd.store.older_api import calls
from metricsd.store.summary import TOOL_USED, Summary, reading
from tests.daemon.test_local_metrics import free_port
from tests.homes import Home, opened, until

EVENTS, DAYS, SESSIONS = 1_000_000, 365, 30_000
P50_MS, P99_MS, CALLS_PER_S, BATCH_MS = 5.0, 25.0, 1000.0, 20.0
CLIENTS, LOAD_S = 32, 5.0
USERS = 50
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
GETS = {
    "sessions": "sessions",
    "sessions of a user": "sessions?user=user-7&limit=20",
    "sessions of a day": "sessions?start_date={day}&end_date={day}T23:59:59Z",
    "one session": "sessions/s-{number:06d}",
    "its calls": "tool-metrics/s-{number:06d}",
    "its figures": "analytics/sessions/s-{number:06d}",
    "productivity": "analytics/productivity",
    "productivity, 30 days": "analytics/productivity?days=30",
    "tools": "analytics/tools",
    "dashboard": "dashboard/metrics",
    "indicators": "dashboard/indicators",
    "baseline": "dashboard/baseline",
    "health": "health",
    "migration status": "migration/status",
}


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._head = f"HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"

    async def open(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the body of a good answer."""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        self._writer.write(f"{method} /api/v1/{path} {self._head}{kind}\r\n".encode() + body)
        async with asyncio.timeout(60):
            head = await self._reader.readuntil(b"\r\n\r\n")
            found = _LENGTH.search(head)
            answer = await self._reader.readexactly(int(found[1])) if found else b""
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            raise RuntimeError(f"{method} {path}: {head[:40]!r} {answer[:200]!r}")
        return answer

    def close(self) -> None:
        self._writer.close()


class Times(NamedTuple):
    """Milliseconds of one kind of request."""

    p50: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Times:
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)])


def call(number: int) -> dict[str, Any]:
    """Return a body of `tool-metrics` that no other has."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - number % 3600))
    return {
        "event": "tool_usage", "timestamp": f"{at}.{number % 1000:03d}Z", "session_id": f"api-{number % 400}",
        "tool_name": "Read", "execution_time": number, "success": number % 20 != 0, "parameters": {"n": number},
    }  # fmt: skip


async def timed(client: Client, path: Callable[[int], str], rounds: int, *, write: Client | None) -> Times:
    """Return the times of a GET, with a write before each one if asked."""
    found = []
    for number in range(rounds):
        if write is not None:
            await write.ask("POST", "tool-metrics", json.dumps(call(time.time_ns() // 1000)).encode())
        began = time.perf_counter()
        await client.ask("GET", path(number))
        found.append((time.perf_counter() - began) * 1000)
    return Times.of(found)


async def load(port: int) -> float:
    """Return calls a second from many clients, each sending its next one when it has its answer."""
    clients = [await Client(port).open() for _ in range(CLIENTS)]
    until_s = time.perf_counter() + LOAD_S
    sent = 0

    async def send(client: Client, number: int) -> None:
        nonlocal sent
        while time.perf_counter() < until_s:
            number += CLIENTS
            await client.ask("POST", "tool-metrics", json.dumps(call(number)).encode())
            sent += 1

    began = time.perf_counter()
    await asyncio.gather(*(send(client, 10_000_000 + place) for place, client in enumerate(clients)))
    took = time.perf_counter() - began
    for client in clients:
        client.close()
    return sent / took


async def measure(port: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return every figure that is measured at the socket."""
    writer = await Client(port).open()
    for number in range(2000):
        start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - number * 3600))
        body = {"session_id": f"api-{number}", "start_time": start, "user": f"user-{number % USERS}"}
        await writer.ask("POST", "sessions", json.dumps(body).encode())
    client = await Client(port).open()
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 40 * 86400))

    def path_of(template: str) -> Callable[[int], str]:
        step = max(options.sessions // options.rounds, 1)
        return lambda number: template.format(day=day, number=number * step % options.sessions)

    await timed(client, path_of("version"), 20, write=None)
    found: dict[str, Any] = {"floor": (await timed(client, path_of("version"), options.rounds, write=None))._asdict()}
    for name, template in GETS.items():
        calm = await timed(client, path_of(template), options.rounds, write=None)
        fresh = await timed(client, path_of(template), options.rounds, write=writer)
        found[name] = {"calm": calm._asdict(), "fresh": fresh._asdict()}
    batches = []
    for number in range(50):
        calls_of_batch = json.dumps([call(50_000_000 + number * 100 + place) for place in range(100)]).encode()
        began = time.perf_counter()
        await writer.ask("POST", "tool-metrics/batch", calls_of_batch)
        batches.append((time.perf_counter() - began) * 1000)
    found["batch of 100"] = Times.of(batches)._asdict()
    client.close()
    writer.close()
    found["calls_per_s"] = await load(port)
    return found


def scans(home: Home, options: argparse.Namespace) -> dict[str, float]:
    """Return what the same answers cost by reading every event; raise if they differ."""
    session = f"s-{options.sessions // 2:06d}"
    with reading(home.paths.store) as summary:
        by = ("kind", "tool", "bucket")
        kept = overview.tool_figures(summary.cells(*by), [])
        counted, tools_ms = _timed(lambda: overview.tool_figures(summary.scanned(*by), []))
        if kept != counted:
            raise AssertionError("the totals differ from the events")
        listed, calls_ms = _timed(lambda: _scanned_calls(summary, session))
        if listed != len(calls(summary, session)):
            raise AssertionError("a session's calls differ from the events")
    return {"tools": tools_ms, "its calls": calls_ms}


def _scanned_calls(summary: Summary, session: str) -> int:
    if summary.db is None:
        return 0
    sql = """SELECT count(*) FROM event JOIN event_type AS t ON t.id = +event.type
        WHERE +event.session = (SELECT id FROM session WHERE session_id = ?) AND t.kind = ?"""
    return int(summary.db.execute(sql, (session, TOOL_USED)).fetchone()[0])


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    found = work()
    return found, (time.perf_counter() - began) * 1000


def fsync_ms(folder: Path) -> float:
    """Return the median time of an fsync after a small append."""
    with (folder / "fsync").open("ab") as file:
        times = []
        for _ in range(100):
            file.write(b"x" * 512)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def missed_of(found: dict[str, Any]) -> list[str]:
    """Return the limits that do not hold."""
    missed = []
    for name in GETS:
        calm = found[name]["calm"]
        if calm["p50"] > P50_MS or calm["p99"] > P99_MS:
            missed.append(name)
    if found["batch of 100"]["p50"] > BATCH_MS:
        missed.append("batch of 100")
    if found["calls_per_s"] < CALLS_PER_S:
        missed.append("calls a second")
    return missed


def main(arguments: list[str]) -> int:
    """Print the figures; return 1 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="bench.older_api")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with opened(Path(folder) / "home", METRICSD_LEGACY_LISTEN=f"127.0.0.1:{port}") as home:
            home.paths.store.parent.mkdir(parents=True)
            fill(home.paths.store, options.events, options.days, options.sessions)
            home.start_daemon()
            until(lambda: _is_open(port))
            found = asyncio.run(measure(port, options))
            found["fsync_ms"] = fsync_ms(Path(folder))
            found["scan_ms"] = scans(home, options)
    missed = missed_of(found)
    if options.json:
        print(json.dumps(found | {"missed": missed}))
    else:
        show(found, options, missed)
    return 1 if missed else 0


def show(found: dict[str, Any], options: argparse.Namespace, missed: list[str]) -> None:
    """Print the figures for people."""
    print(f"the older API over {options.events:,} events in {options.sessions:,} sessions (ms: p50, p99)")
    floor = found["floor"]
    print(f"  {'version (no database)':24} {floor['p50']:8.2f} {floor['p99']:8.2f}")
    for name in GETS:
        calm, fresh = found[name]["calm"], found[name]["fresh"]
        scan = found["scan_ms"].get(name)
        beside = "" if scan is None else f"   by a scan {scan:.0f}"
        print(
            f"  {name:24} {calm['p50']:8.2f} {calm['p99']:8.2f}   fresh {fresh['p50']:8.2f} {fresh['p99']:8.2f}{beside}"
        )
    batch = found["batch of 100"]
    print(f"  {'batch of 100':24} {batch['p50']:8.2f} {batch['p99']:8.2f}   one fsync {found['fsync_ms']:.2f}")
    print(f"  {'calls a second':24} {found['calls_per_s']:8.0f}   from {CLIENTS} clients")
    print(f"limits missed: {', '.join(missed)}" if missed else "every limit holds")


def _is_open(port: int) -> bool:
    async def probe() -> bool:
        try:
            client = await Client(port).open()
        except OSError:
            return False
        client.close()
        return True

    return asyncio.run(probe())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
