"""Two processes that write one tenant at once on PostgreSQL: a puller that goes on after the last number misses nothing."""

from __future__ import annotations

import asyncio

from metricsd.cloud.backend import FeedQuery, Writer
from metricsd.cloud.pg_names import schema_of
from metricsd.cloud.pg_session import Session, move_head
from metricsd.cloud.postgres import PostgresBackend
from metricsd.config import Cloud
from tests.cloud.support import CloudUnderTest
from tests.cloud.test_postgres_isolation import connected

NOW = 1_790_000_000_000_000
ANN = Writer("ann", "reader")
_RECORD = """
INSERT INTO record (person, type, id, change, nonce, device, fields, stamps, deleted)
VALUES ($1, 'session', $2, $3, 7, $4, '{}', '{}', false)
"""


async def write(session: Session, name: str, holding: asyncio.Event, go_on: asyncio.Event) -> None:
    """Store one record; hold the transaction open until told to commit."""
    ids = await session.terms.learn({"ann", "writer"})
    async with session.writing() as (db, head):
        await db.execute(_RECORD, ids["ann"], name.encode(), head.change + 1, ids["writer"])
        await move_head(db, head, head.change + 1, 7)
        holding.set()
        await go_on.wait()


async def pull(cloud: CloudUnderTest, cursor: str) -> tuple[list[str], str]:
    [tenant] = await cloud.backend.directory.list_tenants()
    async with cloud.backend.tenant(tenant) as store:
        page = await store.changes(ANN, FeedQuery(cursor, 100, only_records=False), NOW)
    return [item.record.id for item in page.items if item.record is not None], page.cursor


async def test_a_writer_that_commits_late_is_seen_by_a_puller_who_came_between(postgres_url: str) -> None:
    """The number is taken under the head's lock, so the second writer waits and gets the higher one."""
    async with CloudUnderTest(postgres_url) as cloud:
        await cloud.tenant()
        [tenant] = await cloud.backend.directory.list_tenants()
        backends = [PostgresBackend(postgres_url, Cloud()) for _ in range(2)]
        slow, fast = [Session(backend.pool(None), tenant.id) for backend in backends]
        held, fast_held, go_on, at_once = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
        at_once.set()
        first = asyncio.create_task(write(slow, "slow", held, go_on))
        await held.wait()
        second = asyncio.create_task(write(fast, "fast", fast_held, at_once))
        await until_one_waits(postgres_url)
        seen, cursor = await pull(cloud, "")
        assert (seen, fast_held.is_set()) == ([], False), "nothing is visible before the one with the lower number"
        go_on.set()
        await asyncio.gather(first, second)
        later, _ = await pull(cloud, cursor)
        assert later == ["slow", "fast"]
        for backend in backends:
            await backend.close()


async def test_with_a_plain_sequence_the_same_puller_misses_a_change_for_ever(postgres_url: str) -> None:
    """The same interleaving with numbers from a sequence, which no lock orders: this is what the head row is for."""
    async with CloudUnderTest(postgres_url) as cloud:
        await cloud.tenant()
        [tenant] = await cloud.backend.directory.list_tenants()
        backend = cloud.backend
        assert isinstance(backend, PostgresBackend)
        ids = await Session(backend.pool(None), tenant.id).terms.learn({"ann", "writer"})
        path = f'SET search_path = "{schema_of(tenant.id)}"'
        async with connected(postgres_url) as slow, connected(postgres_url) as fast:
            # Statements in one call would be one transaction.
            for statement in (path, "CREATE SEQUENCE number", "BEGIN"):
                await slow.execute(statement)
            for statement in (path, "BEGIN"):
                await fast.execute(statement)
            for db, name in ((slow, b"slow"), (fast, b"fast")):
                number = await db.fetchval("SELECT nextval('number')")
                await db.execute(_RECORD, ids["ann"], name, number, ids["writer"])
            commit = (
                "UPDATE head SET change = greatest(change, {0}); INSERT INTO change_log VALUES ({0}, {0}, 7); COMMIT"
            )
            await fast.execute(commit.format(2))
            seen, cursor = await pull(cloud, "")
            await slow.execute(commit.format(1))
            later, _ = await pull(cloud, cursor)
    assert (seen, later) == (["fast"], []), "the slow writer's change lies behind the cursor"


async def until_one_waits(url: str) -> None:
    """Return when a transaction waits for a row that another one holds."""
    async with connected(url) as db, asyncio.timeout(60):
        while not await db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            await asyncio.sleep(0.005)
