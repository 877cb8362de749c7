"""Schema steps on PostgreSQL: tenant by tenant, stopped and begun again, served or refused clearly meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metricsd.cloud import pg_install, pg_session
from metricsd.cloud.pg_names import schema_of
from metricsd.cloud.postgres import PostgresBackend
from metricsd.cloud.upgrade import upgrade_all
from metricsd.errors import SchemaTooNew
from metricsd.schema import Step
from tests.cloud.processes import ROOT
from tests.cloud.support import CloudUnderTest, events, ok
from tests.cloud.test_postgres_isolation import connected

TENANTS = 200
STEP = pg_install.TENANT_STEPS[-1].number
EXTRA = Step(STEP + 1, "add_colour.sql", "ALTER TABLE event ADD COLUMN colour TEXT; CREATE TABLE colour (name TEXT)")
BROKEN = Step(STEP + 1, "add_nothing.sql", "ALTER TABLE event ADD COLUMN colour TEXT; SELECT no_such_function()")
TOO_NEW = 1000
SCRIPT = f"""
from metricsd.cloud import pg_install
from metricsd.schema import Step
pg_install.TENANT_STEPS.append(Step({EXTRA.number}, {EXTRA.name!r}, {EXTRA.sql!r}))
from metricsd.cli.cloud import cloud
cloud()
"""


def migrate(url: str, home: Path, *, kill_at: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run `migrate-schema --json` of a metricsd that knows one more step."""
    environment = {**os.environ, "METRICSD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    if kill_at is not None:
        environment["METRICSD_CRASH_AT"] = f"during_schema_step:{kill_at}"
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "migrate-schema", "--json", "--database", url],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def steps_of(url: str) -> list[int]:
    async with connected(url) as db:
        names = [row[0] for row in await db.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^t_'")]
        return [await db.fetchval(f'SELECT step FROM "{name}".head') for name in names]


async def upgrade(cloud: CloudUnderTest) -> list[Any]:
    backend: Any = cloud.backend
    return [each async for each in upgrade_all(backend, backend)]


async def test_200_tenants_are_upgraded_through_a_kill(postgres_url: str, tmp_path: Path) -> None:
    """kill -9 in the middle leaves some on the new step and the rest on the old; the next run does the rest alone."""
    async with CloudUnderTest(postgres_url) as cloud:
        for number in range(TENANTS):
            await cloud.tenant(f"tenant {number:03}")
        device = await cloud.device(tenant="tenant 150")
        await device.push(events(2))
        killed = migrate(postgres_url, tmp_path, kill_at=100)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert sorted(await steps_of(postgres_url)) == [STEP] * 101 + [STEP + 1] * 99
        # Served on either step, by a server that knows the old one only.
        assert (await device.hello())["last_seq"] == 2
        done = json.loads(migrate(postgres_url, tmp_path).stdout)
        assert (done["ok"], done["tenants"], done["steps"]) == (True, TENANTS, 101)
        assert await steps_of(postgres_url) == [STEP + 1] * TENANTS
        assert json.loads(migrate(postgres_url, tmp_path).stdout)["steps"] == 0
        assert (await device.push(events(1, first=3), base_seq=2))["acked_through"] == 3


async def test_a_tenant_on_a_step_that_is_too_old_is_refused_with_what_to_do(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After, for that tenant alone; right after its upgrade it is served."""
    async with CloudUnderTest(postgres_url) as cloud:
        device = await cloud.device()
        monkeypatch.setattr(pg_install, "TENANT_STEPS", [*pg_install.TENANT_STEPS, EXTRA])
        monkeypatch.setattr(pg_session, "TENANT_STEP_NEEDED", STEP + 1)
        newer = await cloud.device(tenant="newer")
        for reply in (await device.try_push(events(1)), await device.try_changes()):
            assert reply.status_code == 503 and reply.json()["code"] == "schema_not_ready"
            assert "migrate-schema" in reply.json()["detail"] and int(reply.headers["retry-after"]) >= 10
        assert (await newer.push(events(1)))["acked_through"] == 1
        assert [(each.tenant, each.steps) for each in await upgrade(cloud)] == [("acme", 1), ("newer", 0)]
        assert (await device.push(events(1)))["acked_through"] == 1


async def test_a_step_that_fails_leaves_the_schema_as_it_was(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step and its number are one transaction; the error is the tenant's own, comes out, and stops no other tenant."""
    async with CloudUnderTest(postgres_url) as cloud:
        device = await cloud.device()
        await cloud.tenant("other")
        with monkeypatch.context() as patch:
            patch.setattr(pg_install, "TENANT_STEPS", [*pg_install.TENANT_STEPS, BROKEN])
            results = await upgrade(cloud)
        assert [each.tenant for each in results] == ["acme", "other"]
        assert all("no_such_function" in str(each.error) for each in results)
        assert await steps_of(postgres_url) == [STEP, STEP]
        async with connected(postgres_url) as db:
            assert await db.fetchval("SELECT count(*) FROM pg_attribute WHERE attname = 'colour'") == 0
        assert (await device.push(events(1)))["acked_through"] == 1


async def test_a_tenant_whose_tables_are_held_is_left_for_the_next_run(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are upgraded, the one is named with the reason, and the next run gets it."""
    monkeypatch.setattr("metricsd.cloud.postgres.LOCK_WAIT_MS", 50)
    monkeypatch.setattr("metricsd.cloud.upgrade.PAUSE_S", 0.01)
    async with CloudUnderTest(postgres_url) as cloud:
        for name in ("a", "b", "c"):
            await cloud.tenant(name)
        held = (await cloud.backend.directory.list_tenants())[1]
        monkeypatch.setattr(pg_install, "TENANT_STEPS", [*pg_install.TENANT_STEPS, EXTRA])
        async with connected(postgres_url) as db:
            await db.execute(f'BEGIN; SELECT 1 FROM "{schema_of(held.id)}".head FOR UPDATE')
            results = await upgrade(cloud)
            assert [(each.tenant, each.steps, each.error is None) for each in results] == [
                ("a", 1, True), ("b", 0, False), ("c", 1, True),
            ]  # fmt: skip
        assert [each.steps for each in await upgrade(cloud)] == [0, 1, 0]


async def test_a_schema_of_a_newer_major_is_refused(postgres_url: str) -> None:
    """By requests with 503, by migrate-schema with one line for the tenant, by the directory before anything is done."""
    async with CloudUnderTest(postgres_url) as cloud:
        device = await cloud.device()
        [tenant] = await cloud.backend.directory.list_tenants()
        async with connected(postgres_url) as db:
            await db.execute(f'UPDATE "{schema_of(tenant.id)}".head SET step = {TOO_NEW}')
        reply = await device.try_push(events(1))
        assert reply.status_code == 503 and "upgrade metricsd" in reply.json()["detail"]
        [result] = await upgrade(cloud)
        assert "upgrade metricsd" in str(result.error)
        async with connected(postgres_url) as db:
            await db.execute(f"UPDATE metricsd_control.instance SET step = {TOO_NEW}")
        with pytest.raises(SchemaTooNew):
            await upgrade(cloud)


def test_an_embedded_cloud_is_told_that_it_needs_no_command(tmp_path: Path) -> None:
    """One line, exit 2."""
    from click.testing import CliRunner

    from metricsd.cli.cloud import cloud
    from metricsd.errors import UsageError

    done = CliRunner().invoke(cloud, ["migrate-schema", "--database", f"sqlite:{tmp_path}"])
    assert isinstance(done.exception, UsageError)


async def test_a_dropped_tenant_leaves_no_schema_and_no_role(postgres_url: str) -> None:
    """Also when a crash came between its data and its name: the command can be repeated."""
    from metricsd.cloud.tenants import drop_tenant, suspend_tenant

    async with CloudUnderTest(postgres_url) as cloud:
        device = await cloud.device()
        await device.push(events(2))
        [tenant] = await cloud.backend.directory.list_tenants()
        backend = cloud.backend
        assert isinstance(backend, PostgresBackend)
        await suspend_tenant(backend.directory, "acme", cloud.clock, actor="test")
        await backend.directory.begin_drop(tenant, cloud.clock.now_us())
        async with backend.pool(None).transaction() as db:
            await pg_install.drop_tenant(db, tenant.id)
        assert (await device.try_changes()).status_code == 403
        await drop_tenant(backend, "acme", cloud.clock, actor="test")
        assert (await device.try_changes()).status_code == 401
        assert ok(await cloud.http.get("/readyz")) == {"status": "ok"}
    async with connected(postgres_url) as db:
        name = schema_of(tenant.id)
        assert await db.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", name) == 0
        assert await db.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = $1", name) == 0
