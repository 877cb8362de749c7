"""A PostgreSQL that is put back to an older state under a running server: found out by devices, believed by nobody's cache."""

from __future__ import annotations

import asyncpg

from tests.cloud.support import CloudUnderTest, Device, event, events, problem, statuses
from tests.postgres import new_name
from tests.postgres_fixtures import execute


async def put_back(server: str, name: str, copy: str) -> None:
    """Put a copy of a database in its place, as a restore does; whoever is connected is cut off."""
    db = await asyncpg.connect(server)
    try:
        await db.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await db.execute(f"CREATE DATABASE {name} TEMPLATE {copy} STRATEGY FILE_COPY")
    finally:
        await db.close()


async def use(device: Device, first: int, word: str) -> list[dict[str, object]]:
    """Push two events with texts of their own."""
    batch: list[dict[str, object]] = [event(first + n, tool=f"{word}-{n}", session=f"{word}-s") for n in range(2)]
    assert statuses((await device.push(batch, base_seq=first - 1))["results"]) == ["stored"] * 2
    return batch


async def test_a_restored_database_is_told_from_the_one_that_went_on(postgres_server: str, postgres_url: str) -> None:
    """Old cursors stay good, newer ones are gone, what was lost is taken again, and every text is the one that was sent,
    although the running server knew numbers for texts that the restored database has given to others."""
    name, copy = postgres_url.rpartition("/")[2], new_name()
    async with CloudUnderTest(postgres_url) as cloud:
        device, other = await cloud.device(), await cloud.device()
        await use(device, 1, "kept")
        old = (await other.changes())["cursor"]
        await cloud.backend.close()
        await execute(postgres_server, f"CREATE DATABASE {copy} TEMPLATE {name} STRATEGY FILE_COPY")
    try:
        async with CloudUnderTest(postgres_url) as cloud:
            device, other = device.on(cloud), other.on(cloud)
            lost = await use(device, 3, "lost")
            newer = (await other.changes())["cursor"]
            await put_back(postgres_server, name, copy)
            # Somebody else goes on first: the same numbers of changes and of texts now mean other things.
            stranger = await cloud.device(user="bob")
            await use(stranger, 1, "stranger")
            assert problem(await other.try_changes(newer)) == (410, "history_changed")
            assert (await other.try_changes(old)).status_code == 200
            told = await device.hello(acked_seq=4, acked_id=str(lost[1]["id"]), cursor=newer)
            assert told["last_seq"] == 2 and told["cursor_ok"] is False and "id_at_acked" not in told
            assert statuses((await device.push(lost, base_seq=2))["results"]) == ["stored"] * 2
            await device.push(events(1, first=5, tool="after"), base_seq=4)
            # The process that wrote would read a wrong number as what it took it for; one that knows nothing does not.
            async with cloud.another() as fresh:
                for reader in (other, other.on(fresh)):
                    seen = [item["event"] for item in await reader.feed()]
                    assert [item["tool"] for item in seen] == ["kept-0", "kept-1", "lost-0", "lost-1", "after"]
                    assert {item.get("session") for item in seen} >= {"kept-s", "lost-s"}
    finally:
        await execute(postgres_server, f"DROP DATABASE {copy} WITH (FORCE)")
