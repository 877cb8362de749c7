"""Requests that are cut off on PostgreSQL: cancelled, their connection killed, their server gone.

Whatever ends a request, the next one, of another tenant, runs clean; what was acknowledged is there; a server that is
away is 503 with Retry-After and is used again when it is back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from metricsd.cloud import pg_pool
from metricsd.cloud.pg_pool import Pool
from metricsd.cloud.postgres import PostgresBackend
from metricsd.config import Cloud
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, Device, event, events, ok, problem
from tests.cloud.test_postgres_isolation import connected
from tests.pooling_proxy import PoolingProxy, is_clean
from tests.postgres import Cluster, own_cluster

ROUNDS = 200
"""How often a request is cut off in one test; five of them make a thousand."""
SOAK_ROUNDS = 10_000
WHOLE = """
SELECT (SELECT count(*) FROM {schema}.event WHERE seq IS NOT NULL), (SELECT count(*) FROM {schema}.binding),
       (SELECT coalesce(sum(last_seq - start_seq), 0)::bigint FROM {schema}.device_stream)
"""
FEW = Cloud(database_connections=3, tenant_requests_per_minute=0, tenant_bytes_per_minute=0)
"""The test clock stands still, so a minute's allowance would never come back."""


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[tuple[Device, Device]]:
    """Devices of two tenants in a process with so few connections that they follow each other on them."""
    async with CloudUnderTest(postgres_url, FEW) as cloud:
        yield await cloud.device(tenant="acme"), await cloud.device(tenant="rival")


class Pushing:
    """A device that pushes batches and knows what was acknowledged."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.size = size
        self.sent: list[dict[str, Any]] = []
        self.acked = 0

    async def step(self) -> None:
        """Push the next batch, or again the one whose answer never came."""
        while len(self.sent) < self.acked + self.size:
            self.sent.append(event(len(self.sent) + 1, session=f"of-{self.device.id}"))
        batch = self.sent[self.acked : self.acked + self.size]
        self.acked = (await self.device.push(batch, base_seq=self.acked))["acked_through"]

    async def check(self, reader: Device) -> None:
        """Everything acknowledged is in the feed, once, and nothing that was never sent."""
        seen = [item["event"]["id"] for item in await reader.feed()]
        assert len(seen) == len(set(seen))
        assert set(seen) <= {item["id"] for item in self.sent}
        assert set(seen) >= {item["id"] for item in self.sent[: self.acked]}
        told = await self.device.hello(acked_seq=self.acked)
        assert told["last_seq"] >= self.acked


async def assert_idle_are_clean(pool: Pool) -> None:
    for idle in pool._idle:
        assert await is_clean(idle.connection)


async def assert_batches_are_whole(url: str) -> None:
    """Each settled position is stored or bound, never both: no part of a cut transaction was committed by the next."""
    async with connected(url) as db:
        for schema in [row[0] for row in await db.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^t_'")]:
            counts = await db.fetchrow(WHOLE.format(schema=schema))
            assert counts[0] + counts[1] == counts[2], (schema, list(counts))


async def cut_and_look(pair: tuple[Device, Device], rounds: int, cut: Any) -> None:
    """Let `cut` end a push of one tenant somewhere, and the other one work right after, `rounds` times."""
    mine, other = pair
    backend: Any = mine.cloud.backend
    pushing = Pushing(mine, 250)
    theirs = Pushing(other, 1)
    ended_early = 0
    for number in range(rounds):
        # A large batch goes by COPY, a small one as arrays.
        pushing.size = 250 if number % 6 == 0 else 15
        task = asyncio.create_task(pushing.step())
        await cut(task)
        try:
            await task
        except (asyncio.CancelledError, AssertionError):
            ended_early += 1
        await theirs.step()
        page = await other.changes()
        assert [item for item in page["items"] if "of-" in str(item)] == []
    assert ended_early > rounds // 5, "the cuts came too late to cut anything"
    await assert_idle_are_clean(backend.pool(None))
    await assert_batches_are_whole(str(mine.cloud.place))
    for each, user_device in ((pushing, mine), (theirs, other)):
        tenant = "acme" if user_device is mine else "rival"
        await each.check(await mine.cloud.device(tenant=tenant))


async def cancel_somewhere(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task], timeout=random.uniform(0, 0.012))
    task.cancel()


class Killer:
    """Ends a random connection of the cloud, from a connection of its own."""

    def __init__(self, db: Any) -> None:
        self._db = db

    async def __call__(self, task: asyncio.Task[None]) -> None:
        await asyncio.wait([task], timeout=random.uniform(0, 0.012))
        await self._db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid != pg_backend_pid() AND datname = current_database() AND state != 'idle'"
        )


@pytest.mark.parametrize("part", range(3))
async def test_after_a_cancelled_request_the_next_one_of_another_tenant_is_clean(
    pair: tuple[Device, Device], part: int
) -> None:
    """Nothing of a cut transaction is left on any connection; what was acknowledged is there once."""
    await cut_and_look(pair, ROUNDS, cancel_somewhere)


@pytest.mark.parametrize("part", range(2))
async def test_after_a_killed_connection_the_next_request_of_another_tenant_is_clean(
    pair: tuple[Device, Device], postgres_url: str, part: int
) -> None:
    """The request whose connection went is told 503, others go on."""
    db = await asyncpg.connect(postgres_url)
    try:
        await cut_and_look(pair, ROUNDS, Killer(db))
    finally:
        await db.close()


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_ten_thousand_cut_requests_leave_nothing(pair: tuple[Device, Device], postgres_url: str) -> None:
    """The same, ten thousand times, cancelled and killed by turns."""
    db = await asyncpg.connect(postgres_url)
    killer = Killer(db)

    async def either(task: asyncio.Task[None]) -> None:
        cut: Any = random.choice([cancel_somewhere, killer])
        await cut(task)

    try:
        await cut_and_look(pair, SOAK_ROUNDS, either)
    finally:
        await db.close()


async def test_a_statement_that_takes_too_long_is_given_up(postgres_url: str) -> None:
    """A lock that somebody holds ends a push after the deadline with 503; with the lock gone it works."""
    async with CloudUnderTest(postgres_url, Cloud(database_timeout_s=0.4)) as cloud:
        device = await cloud.device()
        await device.push(events(1))
        [tenant] = await cloud.backend.directory.list_tenants()
        holder = await asyncpg.connect(postgres_url)
        try:
            await holder.execute(f"BEGIN; SELECT 1 FROM t_{tenant.id}.head FOR UPDATE")
            began = time.monotonic()
            reply = await device.try_push(events(1, first=2), base_seq=1)
            assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
            assert time.monotonic() - began < 3
            assert (await device.hello())["last_seq"] == 1, "readers wait for nobody"
        finally:
            await holder.close()
        assert (await device.push(events(1, first=2), base_seq=1))["acked_through"] == 2


async def test_connections_are_bounded_and_more_requests_take_turns(postgres_url: str) -> None:
    """Two connections serve forty requests at once."""
    async with CloudUnderTest(postgres_url, Cloud(database_connections=2)) as cloud:
        device = await cloud.device()
        replies = await asyncio.gather(*[device.hello() for _ in range(40)])
        assert len(replies) == 40
        assert cloud.backend.gauges()["database_connections"] <= 2
        assert cloud.backend.gauges()["database_connects_total"] <= 4


async def test_more_requests_than_may_wait_are_told_to_come_back(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 that names the limit, at once; those who wait are answered, and then there is room again."""
    monkeypatch.setattr(pg_pool, "WAITING_MAX", 4)
    async with CloudUnderTest(postgres_url, Cloud(database_connections=1)) as cloud:
        device = await cloud.device()
        body = {"device_id": device.id, "epoch": 1, "acked_seq": 0}
        backend: Any = cloud.backend
        async with backend.pool(None).transaction():
            asked = [asyncio.create_task(cloud.post("/hello", body, device.token)) for _ in range(10)]
            done, waiting = set[Any](), set(asked)
            while len(done) < 6:
                more, waiting = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
                assert more, "nobody was refused"
                done |= more
        for task in done:
            assert problem(task.result()) == (503, "busy")
            assert task.result().json()["limit"] == "waiting_requests_max"
            assert int(task.result().headers["retry-after"]) >= 1
        assert [reply.status_code for reply in await asyncio.gather(*waiting)] == [200] * 4
        assert (await device.hello())["last_seq"] == 0


async def test_it_works_behind_a_proxy_that_pools_transactions(postgres_url: str) -> None:
    """Each transaction on a server connection picked at random: nothing is missing there, and nothing stays behind."""
    host, _, rest = postgres_url.partition("@")[2].partition(":")
    port, _, database = rest.partition("/")
    async with PoolingProxy(host, int(port), database, "postgres") as proxy, CloudUnderTest(proxy.url) as cloud:
        devices = [await cloud.device(tenant=f"t{number}") for number in range(4)]
        pushers = [Pushing(device, size) for device, size in zip(devices, (1, 30, 250, 700), strict=True)]

        async def use(pushing: Pushing, number: int) -> None:
            for step in range(6):
                await pushing.step()
                await pushing.device.put({"type": "session", "id": f"s{step}", "fields": {"tags": [str(number)]}})
                await pushing.device.hello()

        await asyncio.gather(*[use(pushing, number) for number, pushing in enumerate(pushers)])
        for number, pushing in enumerate(pushers):
            items = await (await cloud.device(tenant=f"t{number}")).feed()
            assert len([item for item in items if "event" in item]) == pushing.acked == pushing.size * 6
            assert {tag for item in items if "record" in item for tag in item["record"]["fields"]["tags"]} == {
                str(number)
            }
        assert proxy.moves > proxy.transactions // 3, "transactions did not move between connections"
        assert await proxy.dirty() == 0


async def test_a_server_that_goes_away_is_503_until_it_is_back() -> None:
    """Refused with Retry-After while it is down, also at a start; used again without anybody's help."""
    with own_cluster() as cluster:
        async with CloudUnderTest(cluster.url(), Cloud(database_timeout_s=5.0)) as cloud:
            device = await cloud.device()
            await device.push(events(3))
            await asyncio.to_thread(cluster.kill)
            reply = await device.try_push(events(1, first=4), base_seq=3)
            assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
            assert (await cloud.http.get("/readyz")).status_code == 503
            assert (await cloud.http.get("/healthz")).status_code == 200
            starting = PostgresBackend(cluster.url(), Cloud())
            [warning] = await starting.warnings()
            assert "503" in warning, "a server may start before its database does"
            await asyncio.to_thread(cluster.start)
            await until_ready(cloud)
            assert (await device.push(events(1, first=4), base_seq=3))["acked_through"] == 4


async def test_a_server_that_takes_no_writes_is_left_for_one_that_does(postgres_url: str) -> None:
    """As behind an address that moves at a failover: 503 meanwhile, and the old connection is not held on to."""
    async with CloudUnderTest(postgres_url) as cloud:
        device = await cloud.device()
        database = postgres_url.rpartition("/")[2]
        async with connected(postgres_url) as db:
            await db.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid != pg_backend_pid() AND datname = current_database()"
            )
            assert (await device.try_push(events(1))).status_code == 503
            await db.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
        assert (await device.push(events(1)))["acked_through"] == 1


async def test_a_login_or_database_that_is_not_there_stops_a_start(postgres_url: str) -> None:
    """Waiting would not help: one line that says which."""
    for url in (f"{postgres_url}_x", postgres_url.replace("postgres@", "nobody_there@")):
        with pytest.raises(UsageError, match="does not exist"):
            await PostgresBackend(url, Cloud()).warnings()


async def test_what_was_acknowledged_survives_the_postmasters_death() -> None:
    """Killed with SIGKILL under load five times, with full durability: nothing acknowledged is missing, nothing is
    doubled."""
    await kill_postmaster(5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_what_was_acknowledged_survives_fifty_deaths_of_the_postmaster() -> None:
    """The same, fifty times."""
    await kill_postmaster(50)


async def kill_postmaster(times: int) -> None:
    with own_cluster(durable=True) as cluster:
        async with CloudUnderTest(cluster.url(), Cloud(database_timeout_s=5.0)) as cloud:
            pushers = [
                Pushing(await cloud.device(tenant=f"t{number}"), size) for number, size in enumerate((5, 60, 400))
            ]
            for _ in range(times):
                await kill_under_load(cloud, cluster, pushers)
            for number, pushing in enumerate(pushers):
                assert ok(await pushing.device.try_push([], base_seq=pushing.acked))["acked_through"] >= pushing.acked
                await pushing.check(await cloud.device(tenant=f"t{number}"))


async def kill_under_load(cloud: CloudUnderTest, cluster: Cluster, pushers: list[Pushing]) -> None:
    """Let devices push without pause, kill the postmaster in the middle, and start it again."""
    stop = asyncio.Event()

    async def run(pushing: Pushing) -> None:
        while not stop.is_set():
            try:
                await pushing.step()
            except AssertionError:
                # Refused with 503; a client comes back with the same batch.
                await asyncio.sleep(0.01)

    before, wanted = sum(pushing.acked for pushing in pushers), random.randint(100, 1500)
    tasks = [asyncio.create_task(run(pushing)) for pushing in pushers]
    deadline = time.monotonic() + 60
    while sum(pushing.acked for pushing in pushers) < before + wanted:
        assert time.monotonic() < deadline, "no progress"
        await asyncio.sleep(0.002)
    await asyncio.to_thread(cluster.kill)
    stop.set()
    await asyncio.gather(*tasks)
    await asyncio.to_thread(cluster.start)
    await until_ready(cloud)


async def until_ready(cloud: CloudUnderTest) -> None:
    deadline = time.monotonic() + 30
    while (await cloud.http.get("/readyz")).status_code != 200:
        assert time.monotonic() < deadline, "not ready within 30 s"
        await asyncio.sleep(0.02)
