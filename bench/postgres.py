"""How fast the cloud takes events into PostgreSQL, beside a bare ASGI app with the same SQL.

Everything runs on this machine: a PostgreSQL of the tests' wheel with full durability, one server process, and clients
that send prepared zstd bodies over loopback. The floor (`bench/postgres_floor.py`) gets the same requests from as many
clients, sends the same statements, and does nothing else. Floor and cloud take turns on fresh databases of the same
cluster, so that a busy moment of the machine hits both; the best turn of each counts. `--soak MINUTES` pushes for as
long and prints the memory of the server instead.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from bench import postgres_floor
from bench.cloud import EVENTS_PREPARED, START_TIMEOUT_S, Server, bodies_of, enrol, watch_memory
from bench.load import Load, request, run
from metricsd.clock import SystemClock
from metricsd.cloud import tenants
from metricsd.cloud.access import Scope
from metricsd.cloud.app import create_app
from metricsd.cloud.pg_names import schema_of
from metricsd.cloud.postgres import PostgresBackend
from metricsd.cloud.serve import CloudServer
from metricsd.config import Cloud
from tests.postgres import Cluster, new_name, own_cluster

CASES = ((50, 8), (500, 4), (5000, 2), (5000, 4))
"""(events a batch, clients at once), all of one tenant, whose writers take turns."""
EVENTS_PER_S_MIN = 40_000
"""In batches of 5,000 (issue 6)."""
RATIO_MIN = 0.70
"""Of what the floor takes, whatever the size of the batches (issue 6)."""
UNBOUNDED = Cloud(tenant_requests_per_minute=0, tenant_bytes_per_minute=0)
_HEAD = (
    f"{'batch':>6} {'clients':>7} {'batches/s':>10} {'events/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>8}"
    f" {'floor ev/s':>10} {'CPU us':>8} {'ratio':>6}"
)


class Prepared(NamedTuple):
    """A fresh database with one tenant: where it is, the schema, an enrolment token."""

    url: str
    schema: str
    token: str


async def prepare(cluster: Cluster) -> Prepared:
    """Make a database with a tenant in it."""
    name, clock = new_name(), SystemClock()
    db = await asyncpg.connect(cluster.url())
    await db.execute(f"CREATE DATABASE {name}")
    await db.close()
    backend = PostgresBackend(cluster.url(name), UNBOUNDED)
    tenant = await tenants.create_tenant(backend.directory, "bench", clock)
    token = await tenants.create_token(backend.directory, "bench", "ann", Scope.ENROL, clock)
    await backend.close()
    return Prepared(cluster.url(name), schema_of(tenant.id), token)


@asynccontextmanager
async def serving(prepared: Prepared, *, bare: bool) -> AsyncIterator[Server]:
    """Run the cloud, or the floor, in a process of its own."""
    how = ("--floor", prepared.url, prepared.schema) if bare else ("--serve", prepared.url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.postgres", *how), stdout=asyncio.subprocess.PIPE
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
        yield Server(line.decode().strip(), process.pid)
    finally:
        process.terminate()
        await process.wait()


async def turn(cluster: Cluster, size: int, clients: int, seconds: float, *, bare: bool) -> Load:
    """Push for some seconds against a fresh database."""
    prepared = await prepare(cluster)
    async with serving(prepared, bare=bare) as server:
        devices = [(f"{number:032x}", "none") for number in range(clients)]
        if not bare:
            devices = await enrol(server.url, prepared.token, clients)
        count = max(10, int(seconds * EVENTS_PREPARED / size / clients))
        made = [
            [request("POST", "/sync/v1/events", secret, body, content_encoding="zstd") for body in bodies]
            for (_, secret), bodies in ((device, bodies_of(device[0], size, count)) for device in devices)
        ]
        return await run(server.url, made, seconds, server.pid)


async def soak(minutes: float) -> int:
    """Push without pause and print the server's memory; return 1 when it grows after the first minute."""
    with own_cluster(durable=True) as cluster:
        prepared = await prepare(cluster)
        async with serving(prepared, bare=False) as server:
            return await watch_memory(server, prepared.token, minutes)


async def _serve(url: str) -> None:
    backend = PostgresBackend(url, UNBOUNDED)
    server = CloudServer(create_app(backend, UNBOUNDED), UNBOUNDED)
    print(await server.start(), flush=True)
    await server.wait()


def compare(seconds: float, turns: int) -> int:
    """Print one line for each case, with its floor; return 1 when a limit is missed."""
    print(_HEAD)
    best, missed = 0.0, []
    with own_cluster(durable=True) as cluster:
        for size, clients in CASES:
            loads: dict[bool, list[Load]] = {True: [], False: []}
            for _ in range(turns):
                for bare in (True, False):
                    loads[bare].append(asyncio.run(turn(cluster, size, clients, seconds, bare=bare)))
            floor, ours = (max(loads[bare], key=lambda load: load.requests) for bare in (True, False))
            ratio = ours.requests / floor.requests
            print(
                f"{size:>6} {clients:>7} {ours.requests:>10.1f} {ours.requests * size:>10.0f} {ours.p50_ms:>8.1f}"
                f" {ours.p99_ms:>8.1f} {ours.cpu_us:>8.0f} {floor.requests * size:>10.0f} {floor.cpu_us:>8.0f}"
                f" {ratio:>6.2f}",
                flush=True,
            )
            if size == 5000:
                best = max(best, ours.requests * size)
            if ratio < RATIO_MIN:
                missed.append(f"{size} events x {clients} clients: {ratio:.2f} of the floor")
    if best < EVENTS_PER_S_MIN:
        missed.append(f"{best:.0f} events/s")
    print(
        f"limits: {RATIO_MIN:.2f} of the floor, and {EVENTS_PER_S_MIN} events/s in batches of 5,000 (best {best:.0f});"
        f" missed: {'; '.join(missed) or 'none'}"
    )
    return 1 if missed else 0


def main() -> int:
    """Compare with the floor, or soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--floor", nargs=2, metavar=("URL", "SCHEMA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(_serve(options.serve))
        return 0
    if options.floor is not None:
        asyncio.run(postgres_floor.serve(*options.floor))
        return 0
    if options.soak is not None:
        return asyncio.run(soak(options.soak))
    return compare(options.seconds, options.turns)


if __name__ == "__main__":
    sys.exit(main())
