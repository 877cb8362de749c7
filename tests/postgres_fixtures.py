"""Fixtures around tests/postgres.py: the run's server, and a fresh database on it for a test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack

import asyncpg
import pytest

from tests.postgres import NoPostgres, in_database, new_name, shared_server

_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname ~ '^t_[0-9a-f]{16}$'"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of the run's server, as its superuser. Started by the first test that asks."""
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    with ExitStack() as stack:
        try:
            url = stack.enter_context(shared_server(run_id))
        except NoPostgres as error:
            pytest.skip(f"NO POSTGRESQL, so its half of the cloud is not tested: {error}")
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database that this test alone has."""
    name = new_name()
    asyncio.run(execute(postgres_server, f"CREATE DATABASE {name} STRATEGY FILE_COPY"))
    yield in_database(postgres_server, name)
    asyncio.run(drop_database(postgres_server, name))


async def execute(url: str, statement: str) -> None:
    db = await asyncpg.connect(url)
    try:
        await db.execute(statement)
    finally:
        await db.close()


async def drop_database(server: str, name: str) -> None:
    """Remove a database, and the roles that were made for what lies in it."""
    db = await asyncpg.connect(in_database(server, name))
    try:
        roles = [row[0] for row in await db.fetch(_SCHEMAS)]
        if await db.fetchval("SELECT to_regclass('metricsd_control.instance')::text") is not None:
            roles += await db.fetchrow("SELECT ingest, tenants FROM metricsd_control.instance")
    finally:
        await db.close()
    db = await asyncpg.connect(server)
    try:
        await db.execute(f"DROP DATABASE {name} WITH (FORCE)")
        for role in roles:
            await db.execute(f'DROP ROLE IF EXISTS "{role}"')
    finally:
        await db.close()
