"""How many laptops one process of the cloud can serve, from what each of their requests costs it in CPU.

A laptop's round every five minutes is a hello, a batch of events, a look at its changes; beside that it keeps a stream
of news open, or probes. Each kind is measured alone, by clients on this machine, on SQLite with synchronous=FULL. The
streams are opened and then left alone: what counts is the memory of one and the CPU of all. Run it with
`python -m bench.capacity`.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import psutil

from bench.cloud import Server, bodies_of, enrol, prepare, serving
from bench.load import Load, request, run

CLIENTS = 8
STREAMS = 900
"""Below `cloud.streams_max`."""
IDLE_S = 30.0
INTERVAL_S = 300.0
PROBE_S = 20.0
"""How often a laptop without a stream looks whether the cloud is there (DESIGN section 9: within 20 s)."""
REQUESTS_PREPARED = 3_000
"""Requests a second and client that are made ready; more than any kind can take."""
CPU_SHARE = 0.7
"""Of one core: the rest is for peaks, large first syncs and restarts."""
DESCRIPTORS = 4_096
MIB = 1024 * 1024


async def measure(seconds: float) -> dict[str, Load]:
    """Return what each kind of request costs."""
    with tempfile.TemporaryDirectory() as name:
        token = await prepare(Path(name))
        async with serving(Path(name), bare=False) as server:
            devices = await enrol(server.url, token, CLIENTS)
            count = int(seconds * REQUESTS_PREPARED)
            kinds = {
                "probe": [[request("GET", "/healthz", "")] * count for _ in devices],
                "hello": [[_hello(device, secret)] * count for device, secret in devices],
                "changes": [[request("GET", "/sync/v1/changes?only=records", secret)] * count for _, secret in devices],
                "events": [_events(device, secret, int(seconds * 300)) for device, secret in devices],
            }
            return {kind: await run(server.url, made, seconds, server.pid) for kind, made in kinds.items()}


def _hello(device: str, secret: str) -> bytes:
    body = msgspec.json.encode({"device_id": device, "epoch": 1, "acked_seq": 0})
    return request("POST", "/sync/v1/hello", secret, body)


def _events(device: str, secret: str, count: int) -> list[bytes]:
    bodies = bodies_of(device, 50, count)
    return [request("POST", "/sync/v1/events", secret, body, content_encoding="zstd") for body in bodies]


async def hold_streams() -> tuple[float, float]:
    """Open streams and leave them alone; return bytes a stream, and the CPU of all of them as a share of a core."""
    with tempfile.TemporaryDirectory() as name:
        token = await prepare(Path(name))
        async with serving(Path(name), bare=False) as server:
            devices = await enrol(server.url, token, STREAMS)
            process = psutil.Process(server.pid)
            before = process.memory_info().rss
            writers = [await _open_stream(server, secret) for _, secret in devices]
            grown = process.memory_info().rss - before
            cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
            await asyncio.sleep(IDLE_S)
            share = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
            for writer in writers:
                writer.close()
    return grown / STREAMS, share


async def _open_stream(server: Server, secret: str) -> asyncio.StreamWriter:
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request("GET", "/sync/v1/changes/stream", secret))
    await reader.readuntil(b"event: open")
    return writer


def main() -> int:
    """Print the cost of each kind of request, and the laptops that follow from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
    loads = asyncio.run(measure(options.seconds))
    print(f"{'request':>8} {'a second':>9} {'p50 ms':>7} {'p99 ms':>7} {'CPU us':>7}")
    for kind, load in loads.items():
        print(f"{kind:>8} {load.requests:>9.0f} {load.p50_ms:>7.1f} {load.p99_ms:>7.1f} {load.cpu_us:>7.0f}")
    each, share = asyncio.run(hold_streams())
    print(f"{STREAMS} streams: {each / 1024:.1f} KiB each, {share * 100:.1f} % of a core for all")
    round_us = sum(loads[kind].cpu_us for kind in ("hello", "events", "changes"))
    stream_us = share * 1e6 / STREAMS * INTERVAL_S
    probe_us = loads["probe"].cpu_us * INTERVAL_S / PROBE_S
    for what, beside_us in (("a stream", stream_us), (f"a probe every {PROBE_S:g} s", probe_us)):
        laptops = CPU_SHARE * INTERVAL_S * 1e6 / (round_us + beside_us)
        print(
            f"with {what}: {(round_us + beside_us) / 1000:.2f} ms of CPU a laptop and {INTERVAL_S:g} s,"
            f" so {laptops:,.0f} laptops on {CPU_SHARE:.0%} of a core"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
