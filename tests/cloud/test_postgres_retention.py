"""Retention per tenant on PostgreSQL: old events go, their positions stay settled, others' tenants keep theirs."""

from __future__ import annotations

import asyncio
import json

import pytest

from metricsd.clock import US_PER_S, SystemClock
from metricsd.cloud import pg_retention
from metricsd.cloud.access import Act
from metricsd.cloud.pg_names import schema_of
from metricsd.cloud.postgres import PostgresBackend
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, Device, event, events, statuses
from tests.cloud.test_cloud_cli import run
from tests.cloud.test_postgres_isolation import connected
from tests.fakes import FakeClock

DAY_S = 86_400.0
DAY_US = 86_400 * US_PER_S
YEARS_S = 10 * 365 * DAY_S
SCANS = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relid = 'event'::regclass"
"""How often this connection has read the whole table."""


@pytest.fixture(autouse=True)
def database_clock(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """The database's clock shows what the server's shows, until a test says otherwise."""
    set_database_clock(monkeypatch, clock.now_us())


def set_database_clock(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr(pg_retention, "_DATABASE_NOW", f"SELECT {at}::bigint")


async def retain(cloud: CloudUnderTest, days: int, name: str = "acme", *, sure: bool = False) -> int:
    backend = cloud.backend
    assert isinstance(backend, PostgresBackend)
    [tenant] = [found for found in await backend.directory.list_tenants() if found.name == name]
    now = cloud.clock.now_us()
    return await backend.retain(
        tenant,
        days,
        Act(actor="test", action="tenant.retention_set", tenant=name, subject=tenant.id, at=now),
        sure=sure,
    )


async def filled(cloud: CloudUnderTest, tenant: str = "acme") -> tuple[Device, list[dict[str, object]]]:
    """A device with ten events that are 40 days old, ten of today, and a loose old one."""
    device, now = await cloud.device(tenant=tenant), cloud.clock.now_us()
    batch = events(10, at=now - 40 * DAY_US) + events(10, first=11, at=now)
    await device.push(batch)
    await device.push([event(at=now - 50 * DAY_US)], query="?unsequenced=1")
    return device, batch


async def settle(url: str, now: int) -> None:
    """As if pushes had looked every hour since yesterday."""
    async with connected(url) as db:
        for (name,) in await db.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^t_'"):
            await db.execute(f'UPDATE "{name}".retention SET looked_at = $1, steady_since = $2', now, now - DAY_US)


async def push_live(cloud: CloudUnderTest, device: Device, at: int, seq: int) -> int:
    """Push an event through a process that has not looked yet; return how many events there are after that."""
    async with cloud.another() as other:
        await device.on(other).push([event(seq, at=at)], base_seq=seq - 1)
    return len(await (await cloud.device()).feed())


async def test_old_events_go_and_their_positions_stay_settled(postgres_url: str) -> None:
    """A replay of a dropped batch is answered as before; a fork is still told from a replay; cursors stay good."""
    async with CloudUnderTest(postgres_url) as cloud:
        device, batch = await filled(cloud)
        reader = await cloud.device()
        cursor = (await reader.changes(limit=5))["cursor"]
        other, _ = await filled(cloud, "rival")
        assert await retain(cloud, 30) == 11
        assert [item["event"]["id"] for item in await reader.feed()] == [item["id"] for item in batch[10:]]
        assert len((await reader.changes(cursor))["items"]) == 10
        assert statuses((await device.push(batch))["results"]) == ["duplicate"] * 20
        told = await device.hello(acked_seq=3)
        assert (told["last_seq"], told["id_at_acked"]) == (20, batch[2]["id"])
        assert (await device.try_push([event(3)], base_seq=2)).json()["code"] == "stream_fork"
        assert len(await (await cloud.device(tenant="rival")).feed()) == 21, "another tenant keeps its own"
        assert (await other.hello())["last_seq"] == 20


async def test_pushes_drop_what_has_become_old(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step at a time, without delay while some are left, then once an hour; without a retention nothing goes."""
    monkeypatch.setattr(pg_retention, "ROWS_PER_STEP", 4)
    monkeypatch.setattr(pg_retention, "_DROP", pg_retention._DROP.replace("LIMIT 5000", "LIMIT 4"))
    async with CloudUnderTest(postgres_url) as cloud:
        device, _ = await filled(cloud)
        reader = await cloud.device()
        now = cloud.clock.now_us()
        await retain(cloud, 60)
        await settle(postgres_url, now)
        async with connected(postgres_url) as db:
            await db.execute("UPDATE metricsd_control.tenant SET retention_days = 30")
        left = []
        for seq in range(21, 26):
            await device.push([event(seq, at=now)], base_seq=seq - 1)
            left.append(len(await reader.feed()) - (seq - 20))
        assert left == [17, 13, 10, 10, 10]


async def test_an_old_range_is_found_without_reading_everything(postgres_url: str) -> None:
    """The plan of the search is by ranges of blocks once the table is large enough to matter."""
    async with CloudUnderTest(postgres_url) as cloud:
        device = await cloud.device()
        for number in range(3):
            first = number * 4000 + 1
            await device.push(events(4000, first=first, at=cloud.clock.now_us() + number * DAY_US), base_seq=first - 1)
        [tenant] = await cloud.backend.directory.list_tenants()
        async with connected(postgres_url) as db:
            await db.execute(f'SET search_path = "{schema_of(tenant.id)}"; SET enable_seqscan = off')
            await db.execute("VACUUM ANALYZE event")
            plan = str(await db.fetch("EXPLAIN SELECT ctid FROM event WHERE at < 5 LIMIT 5000"))
            await db.execute("RESET enable_seqscan")
            async with db.transaction():
                now, before = cloud.clock.now_us(), await db.fetchval(SCANS)
                assert await pg_retention._is_current(db, now)
                assert not await pg_retention._is_there(db, pg_retention._IS_DUE, now - DAY_US)
                # Also what a planner would rather look for from the start of the table.
                assert await db.fetchval(SCANS) == before
                assert await db.fetchval("SHOW enable_seqscan") == "on"
    assert "event_range" in plan


async def test_the_command_sets_and_drops(postgres_url: str, home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says how many went; on an embedded cloud it says where retention is."""
    set_database_clock(monkeypatch, SystemClock().now_us())
    async with CloudUnderTest(postgres_url, clock=SystemClock()) as cloud:
        await filled(cloud)
    arguments = ("tenant", "retain", "acme", "--days", "1", "--json")
    made = json.loads((await asyncio.to_thread(run, *arguments, "--database", postgres_url)).stdout)
    assert made["retention_days"] == 1 and made["dropped_events"] == 11
    with pytest.raises(UsageError, match="postgresql://"):
        await asyncio.to_thread(run, *arguments)


async def test_one_clock_that_is_years_ahead_drops_nothing(
    postgres_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a server's, for however long, nor the database's, nor an administrator's; what comes later is taken in."""
    async with CloudUnderTest(postgres_url, clock=clock) as cloud:
        device, _ = await filled(cloud)
        now = clock.now_us()
        await retain(cloud, 60)
        await settle(postgres_url, now)
        set_database_clock(monkeypatch, now + 3650 * DAY_US)
        assert await push_live(cloud, device, now, 21) == 22
        set_database_clock(monkeypatch, now)
        clock.jump(YEARS_S)
        assert await retain(cloud, 60) == 0
        await settle(postgres_url, now)
        assert await push_live(cloud, device, now, 22) == 23
        clock.jump(-YEARS_S)
        assert await push_live(cloud, device, now, 23) == 24


async def test_both_clocks_years_ahead_drop_nothing_while_events_say_otherwise(
    postgres_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For however long; events from the far future, of a broken or hostile device, are no sign that it is then."""
    async with CloudUnderTest(postgres_url, clock=clock) as cloud:
        device, _ = await filled(cloud)
        now = clock.now_us()
        await retain(cloud, 60)
        clock.jump(YEARS_S)
        ahead = clock.now_us()
        set_database_clock(monkeypatch, ahead)
        for seq, at in enumerate((now, now + 5 * 365 * DAY_US, ahead + 365 * DAY_US), 21):
            await settle(postgres_url, ahead)
            assert await push_live(cloud, device, at, seq) == seq + 1
        await settle(postgres_url, ahead)
        with pytest.raises(UsageError, match="no event of the tenant is from about now"):
            await retain(cloud, 30)
        [tenant] = await cloud.backend.directory.list_tenants()
        assert tenant.retention_days == 60, "nothing was changed"
        assert await retain(cloud, 30, sure=True) == 23, "an administrator may be sure; what lies ahead stays"


async def test_after_a_leap_of_every_clock_nothing_goes_for_a_day(
    postgres_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when all machines ask one time server that is wrong. A look that is lost in between begins the day anew."""
    async with CloudUnderTest(postgres_url, clock=clock) as cloud:
        device, _ = await filled(cloud)
        await retain(cloud, 60)
        await settle(postgres_url, clock.now_us())
        seq = 20

        async def after(seconds: float) -> int:
            nonlocal seq
            seq += 1
            clock.advance(seconds)
            set_database_clock(monkeypatch, clock.now_us())
            return await push_live(cloud, device, clock.now_us(), seq)

        for seconds in (YEARS_S, 3600.0, DAY_S / 2, -YEARS_S, 3600.0):
            assert await after(seconds) == seq + 1
        with pytest.raises(UsageError, match="the last look was 3650 days away"):
            clock.jump(YEARS_S)
            set_database_clock(monkeypatch, clock.now_us())
            await retain(cloud, 30)
        clock.jump(-YEARS_S)
        for seconds in (YEARS_S, DAY_S - 60):
            assert await after(seconds) == seq + 1
        assert await after(120) == 6, "a day later they are believed: what is left are the six of that time"


async def test_a_tenant_on_an_older_step_is_served_and_keeps_its_events(postgres_url: str, clock: FakeClock) -> None:
    """Until its schema knows of looks nothing goes beside its pushes, and no push is refused for it."""
    async with CloudUnderTest(postgres_url, clock=clock) as cloud:
        device, _ = await filled(cloud)
        await retain(cloud, 60)
        async with connected(postgres_url) as db:
            await db.execute("UPDATE metricsd_control.tenant SET retention_days = 1")
            [tenant] = await cloud.backend.directory.list_tenants()
            await db.execute(f'DROP TABLE "{schema_of(tenant.id)}".retention')
        assert await push_live(cloud, device, clock.now_us(), 21) == 22
