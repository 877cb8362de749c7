"""Tenants apart on PostgreSQL: roles and schemas hold where application code would not.

The second barrier is tried at the level of SQL, under the roles that requests run under: what application code forgets
to say (a tenant) is not needed for the answer to be right.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from metricsd.cloud.access import Act, Scope
from metricsd.cloud.pg_names import CONTROL, new_roles, role, schema_of
from metricsd.cloud.postgres import PostgresBackend
from metricsd.cloud.tenants import create_tenant
from metricsd.config import Cloud
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, Device, event, events, statuses
from tests.cloud.test_isolation import fill
from tests.postgres import in_database, new_name
from tests.postgres_fixtures import drop_database, execute

TENANTS = 20
READABLE = """
SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'v', 'm', 'p', 'S') AND nspname !~ '^(pg_|information_schema)'
AND has_schema_privilege(nspname, 'USAGE') AND has_table_privilege(pg_class.oid, 'SELECT')
"""


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        await db.close()


async def dump(db: Any) -> str:
    """Return everything that the connection's role can read, as text."""
    tables = [row[0] for row in await db.fetch(READABLE)]
    texts = [str(await db.fetch(f"SELECT * FROM {table}")) for table in tables]
    return "".join(texts)


async def test_under_a_tenants_role_nothing_of_others_can_be_seen(postgres_url: str) -> None:
    """Twenty tenants with a canary each: whatever their roles can read, with or without naming a schema, is theirs."""
    async with CloudUnderTest(postgres_url) as cloud:
        for number in range(TENANTS):
            await fill(await cloud.device(tenant=f"tenant {number:02}"), f"canary-{number:02}")
        tenants = await cloud.backend.directory.list_tenants()
    async with connected(postgres_url) as db:
        for number, tenant in enumerate(tenants):
            name = schema_of(tenant.id)
            async with db.transaction():
                await db.execute(f'SET LOCAL ROLE "{name}"; SET LOCAL search_path = "{name}", pg_temp')
                seen = await dump(db)
                assert f"canary-{number:02}" in seen
                assert not [other for other in range(TENANTS) if other != number and f"canary-{other:02}" in seen]
                assert await db.fetchval("SELECT count(*) FROM event") == 1, "a query that names no tenant"
            other = schema_of(tenants[number - 1].id)
            for table in (f"{other}.event", f"{other}.term", f"{CONTROL}.token", f"{CONTROL}.tenant"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    async with db.transaction():
                        await db.execute(f'SET LOCAL ROLE "{name}"')
                        await db.fetch(f"SELECT * FROM {table}")


async def test_the_ingest_login_owns_nothing_and_serves_all(postgres_url: str) -> None:
    """It reads no tenant without becoming it, changes no audit row, and makes no tenant; a server works with it."""
    async with CloudUnderTest(postgres_url) as cloud:
        device, rival = await cloud.device(tenant="acme"), await cloud.device(tenant="rival")
        await device.push(events(2))
        instance = await cloud.backend.directory.instance()  # type: ignore[attr-defined]
        [acme, _] = await cloud.backend.directory.list_tenants()
    url = postgres_url.replace("postgres@", f"{instance.ingest}@")
    async with connected(url) as db:
        assert await db.fetchval("SELECT count(*) FROM pg_class WHERE relowner = session_user::regrole") == 0
        for statement in (
            f'SELECT * FROM "{schema_of(acme.id)}".event',
            f"UPDATE {CONTROL}.audit SET actor = 'x'",
            f"DELETE FROM {CONTROL}.audit",
            f"SELECT * FROM {CONTROL}.audit",
            f"UPDATE {CONTROL}.token SET scope = 'admin'",
            f"INSERT INTO {CONTROL}.tenant VALUES ('0123456789abcdef', 'x', '', 0)",
            "CREATE SCHEMA mine",
            "CREATE ROLE mine",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(statement)
    async with CloudUnderTest(url) as served:
        assert statuses((await device.on(served).push(events(1, first=3), base_seq=2))["results"]) == ["stored"]
        again = await served.post("/devices", {"name": "laptop", "parent": rival.id}, rival.token)
        assert again.status_code == 200, again.text
        await Device(served, again.json()).push([event(1)])
        gone = await served.http.request(
            "DELETE", f"/sync/v1/devices/{rival.id}/data", headers={"authorization": f"Bearer {rival.token}"}
        )
        assert gone.status_code == 200, gone.text
        # The tests' own server keeps nothing through a power failure, which is said, and a given one may; of the login
        # there is nothing to say.
        async with connected(postgres_url) as db:
            lasting = await db.fetchval("SHOW fsync") == "on"
        of_disk = await served.backend.warnings()  # type: ignore[attr-defined]
        assert [("fsync" in warning) for warning in of_disk] == ([] if lasting else [True])
        with pytest.raises(UsageError, match="owner's URL"):
            await served.tenant("third")
    async with CloudUnderTest(postgres_url) as owner:
        *_, warning = await owner.backend.warnings()  # type: ignore[attr-defined]
        assert instance.ingest in warning and "password" in warning


async def test_an_owner_that_is_no_superuser_is_enough(postgres_url: str) -> None:
    """It may make roles and schemas, and no more; tenants are made, served and dropped with it."""
    name = f"owner_{postgres_url[-12:]}"
    database = postgres_url.rpartition("/")[2]
    await execute(postgres_url, f"CREATE ROLE {name} LOGIN CREATEROLE; GRANT CREATE ON DATABASE {database} TO {name}")
    try:
        async with CloudUnderTest(postgres_url.replace("postgres@", f"{name}@")) as cloud:
            device = await cloud.device()
            await device.push(events(3))
            await cloud.token(Scope.READ)
            [tenant] = await cloud.backend.directory.list_tenants()
            act = Act(actor="test", action="tenant.dropped", tenant="acme", subject=tenant.id, at=1)
            await cloud.backend.drop_tenant(tenant, act)
            assert await cloud.backend.directory.list_tenants() == []
            assert (await device.try_push(events(1, first=4), base_seq=3)).status_code == 401
    finally:
        async with connected(postgres_url) as db:
            roles = [row[0] for row in await db.fetch("SELECT rolname FROM pg_roles WHERE rolname ~ '^metricsd_'")]
            await db.execute(f"DROP OWNED BY {name} CASCADE")
            for made in roles:
                if await db.fetchval(
                    "SELECT 1 FROM pg_auth_members WHERE roleid = $1::text::regrole AND member = $2::text::regrole",
                    made, name,
                ):  # fmt: skip
                    await db.execute(f'DROP OWNED BY "{made}"; DROP ROLE "{made}"')
            await db.execute(f"DROP ROLE {name}")


async def test_two_first_tenants_at_once_make_one_installation(postgres_url: str) -> None:
    """Administrators may start together; both tenants are there, under one pair of roles."""
    async with CloudUnderTest(postgres_url) as one, CloudUnderTest(postgres_url) as two:
        await asyncio.gather(one.tenant("one"), two.tenant("two"), one.tenant("three"))
        assert [tenant.name for tenant in await two.backend.directory.list_tenants()] == ["one", "three", "two"]


async def test_tenants_may_live_on_several_servers(postgres_url: str, postgres_server: str) -> None:
    """The directory says where; a tenant elsewhere leaves nothing of its data here."""
    elsewhere = f"{postgres_url}_b"
    database = elsewhere.rpartition("/")[2]
    await execute(postgres_server, f"CREATE DATABASE {database} STRATEGY FILE_COPY")
    try:
        async with CloudUnderTest(postgres_url) as cloud:
            await cloud.tenant("near")
            await create_tenant(cloud.backend.directory, "far", cloud.clock, server=elsewhere)
            near, far = await cloud.device(tenant="near"), await cloud.device(tenant="far")
            other = await cloud.device(tenant="far")
            await near.push(events(1))
            await far.push(events(2))
            assert len(await other.feed()) == 2
            there = {tenant.name: schema_of(tenant.id) for tenant in await cloud.backend.directory.list_tenants()}
        for url, held in ((postgres_url, "near"), (elsewhere, "far")):
            async with connected(url) as db:
                found = {row[0] for row in await db.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^t_'")}
            assert found == {there[held]}
    finally:
        await drop_database(postgres_server, database)


async def test_a_database_in_another_encoding_is_refused(postgres_server: str) -> None:
    """Names of people are in all scripts; the sentence says how to make a database that holds them."""
    name = new_name()
    await execute(postgres_server, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        async with CloudUnderTest(in_database(postgres_server, name)) as cloud:
            with pytest.raises(UsageError, match="encoding=UTF8"):
                await cloud.tenant()
    finally:
        await drop_database(postgres_server, name)


@pytest.mark.parametrize("text", ["", "t", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef\n", 'x"; DROP --'])
def test_no_text_but_a_generated_one_becomes_an_identifier(text: str) -> None:
    """A tenant's id and an installation's roles have one form each."""
    with pytest.raises(ValueError, match="not a"):
        schema_of(text)
    with pytest.raises(ValueError, match="not a"):
        role(f"metricsd_ingest_{text}")
    assert [role(name) for name in new_roles()]


@pytest.mark.parametrize(
    "url", ["postgresql:x", "postgresql://", "postgresql://host", "mysql://a/b", "postgresql://h:x/d"]
)
def test_a_url_that_cannot_be_one_says_what_to_write(url: str) -> None:
    """And never repeats it, because it may hold a password."""
    with pytest.raises(UsageError, match="USER@HOST:PORT/DATABASE"):
        PostgresBackend(url, Cloud())


async def test_a_name_never_reaches_an_identifier(postgres_url: str) -> None:
    """A tenant's schema has a generated name, whatever the tenant, user or device is called."""
    wild = "x\"; DROP SCHEMA metricsd_control CASCADE; --'"
    async with CloudUnderTest(postgres_url) as cloud:
        device = await cloud.device(tenant=wild, user=wild, name=wild)
        await device.push([event(1, tool=wild, session=wild)])
        assert len(await cloud.backend.directory.list_tenants()) == 1
    async with connected(in_database(postgres_url, postgres_url.rpartition("/")[2])) as db:
        names = [row[0] for row in await db.fetch("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|inf|pub)'")]
    assert len(names) == 2 and CONTROL in names
