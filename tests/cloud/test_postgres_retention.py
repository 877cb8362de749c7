"""Retention per tenant on PostgreSQL: old events go, their positions stay settled, others' tenants keep theirs."""

from __future__ import annotations

import asyncio
import json

import pytest

from metricsd.clock import US_PER_S
from metricsd.cloud import pg_retention
from metricsd.cloud.access import Act
from metricsd.cloud.pg_names import schema_of
from metricsd.cloud.postgres import PostgresBackend
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, Device, event, events, statuses
from tests.cloud.test_cloud_cli import run
from tests.cloud.test_postgres_isolation import connected

DAY_US = 86_400 * US_PER_S


async def retain(cloud: CloudUnderTest, days: int, name: str = "acme") -> int:
    backend = cloud.backend
    assert isinstance(backend, PostgresBackend)
    [tenant] = [found for found in await backend.directory.list_tenants() if found.name == name]
    now = cloud.clock.now_us()
    return await backend.retain(
        tenant, days, Act(actor="test", action="tenant.retention_set", tenant=name, subject=tenant.id, at=now)
    )


async def filled(cloud: CloudUnderTest, tenant: str = "acme") -> tuple[Device, list[dict[str, object]]]:
    """A device with ten events that are 40 days old, ten of today, and a loose old one."""
    device, now = await cloud.device(tenant=tenant), cloud.clock.now_us()
    batch = events(10, at=now - 40 * DAY_US) + events(10, first=11, at=now)
    await device.push(batch)
    await device.push([event(at=now - 50 * DAY_US)], query="?unsequenced=1")
    return device, batch


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
    assert "event_range" in plan


async def test_the_command_sets_and_drops(postgres_url: str, home: object) -> None:
    """And says how many went; on an embedded cloud it says where retention is."""
    async with CloudUnderTest(postgres_url) as cloud:
        await filled(cloud)
    arguments = ("tenant", "retain", "acme", "--days", "1", "--json")
    made = json.loads((await asyncio.to_thread(run, *arguments, "--database", postgres_url)).stdout)
    assert made["retention_days"] == 1 and made["dropped_events"] == 21
    with pytest.raises(UsageError, match="postgresql://"):
        await asyncio.to_thread(run, *arguments)
