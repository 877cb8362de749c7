"""`metricsd cloud` with a PostgreSQL URL: what it says when something is missing, and that nothing else needs the driver."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metricsd.cloud.pg_names import schema_of
from tests.cloud.processes import ROOT
from tests.cloud.support import CloudUnderTest, events
from tests.cloud.test_postgres_isolation import connected
from tests.cloud.test_postgres_order import until_one_waits

WITHOUT_DRIVER = "import sys; sys.modules['asyncpg'] = None; from metricsd.__main__ import main; sys.exit(main())"


def cli(home: Path, *arguments: str, program: str = "", timeout_s: str = "15") -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, or a program with its arguments."""
    how = ["-c", program] if program else ["-m", "metricsd"]
    return subprocess.run(
        [sys.executable, *how, *arguments],
        env={
            **os.environ, "METRICSD_HOME": str(home), "PYTHONPATH": str(ROOT),
            "METRICSD_CLOUD_DATABASE_TIMEOUT_S": timeout_s,
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_without_the_driver_everything_but_postgresql_works(tmp_path: Path) -> None:
    """And a PostgreSQL URL says what to install."""
    made = cli(tmp_path, "cloud", "tenant", "create", "acme", program=WITHOUT_DRIVER)
    assert made.returncode == 0, made.stderr
    refused = cli(tmp_path, "cloud", "tenant", "list", "--database", "postgresql://h/d", program=WITHOUT_DRIVER)
    assert refused.returncode == 2 and "pip install 'metricsd[postgres]'" in refused.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://nobody_there@{place}", "nobody_there"),
        ("postgresql://postgres@{server}/no_such_database", "no_such_database"),
        ("postgresql://postgres@127.0.0.1:1/x", "does not answer"),
        ("postgresql:x", "USER@HOST:PORT/DATABASE"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, postgres_url: str, url: str, said: str
) -> None:
    """Exit 2, without a traceback, for reading and for making."""
    place = postgres_url.partition("@")[2]
    target = url.format(place=place, server=place.partition("/")[0])
    for command in (("tenant", "list"), ("tenant", "create", "acme"), ("stats",), ("migrate-schema",)):
        done = cli(tmp_path, "cloud", *command, "--database", target)
        assert done.returncode == 2, (command, done.stderr)
        assert said in done.stderr and "Traceback" not in done.stderr


def test_the_commands_of_a_team_work_from_end_to_end(tmp_path: Path, postgres_url: str) -> None:
    """Tenant, people, codes, tokens, figures and audit log on an empty database."""

    def ok(*arguments: str) -> str:
        done = cli(tmp_path, "cloud", *arguments, "--database", postgres_url)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    for noun in ("tenant", "token", "user", "device", "audit"):
        assert json.loads(ok(noun, "list", "--json")) == [], (
            "an empty database is an empty cloud, as an empty folder is"
        )
    assert json.loads(ok("stats", "--json")) == []
    assert json.loads(ok("audit", "verify", "--json"))["rows"] == 0
    ok("tenant", "create", "acme")
    ok("user", "add", "ann", "--tenant", "acme")
    ok("enrol", "--tenant", "acme", "--user", "ann")
    ok("token", "create", "--tenant", "acme", "--user", "bob", "--scope", "read")
    [token] = json.loads(ok("token", "list", "--json"))
    ok("token", "revoke", token["id"])
    ok("tenant", "retain", "acme", "--days", "30")
    ok("tenant", "suspend", "acme")
    [row] = json.loads(ok("stats", "--json"))
    assert (row["tenant"], row["users"], row["tokens"], row["suspended"]) == ("acme", 2, 0, True)
    ok("tenant", "drop", "acme", "--yes")
    actions = [row["action"] for row in json.loads(ok("audit", "list", "--json"))]
    assert actions == [
        "tenant.created", "user.added", "code.created", "token.created", "token.revoked", "tenant.retention_set",
        "tenant.suspended", "tenant.dropped",
    ]  # fmt: skip
    ok("audit", "verify")


async def test_figures_of_a_big_tenant_may_take_longer_than_a_request(tmp_path: Path, postgres_url: str) -> None:
    """Counting is not given up after the deadline of a request."""
    async with CloudUnderTest(postgres_url) as cloud:
        await (await cloud.device()).push(events(3))
        [tenant] = await cloud.backend.directory.list_tenants()
    async with connected(postgres_url) as db:
        await db.execute("BEGIN")
        await db.execute(f'LOCK TABLE "{schema_of(tenant.id)}".event')
        counting = asyncio.create_task(
            asyncio.to_thread(cli, tmp_path, "cloud", "stats", "--json", "--database", postgres_url, timeout_s="0.1")
        )
        await until_one_waits(postgres_url)
        _, waiting = await asyncio.wait([counting], timeout=0.3)
        assert waiting, counting.result().stderr
        await db.execute("COMMIT")
    done = await counting
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["events"] == 3


def test_a_password_never_goes_into_the_directory(tmp_path: Path, postgres_url: str) -> None:
    """Neither may a tenant's server be given with one, nor has an embedded cloud other servers."""
    told = cli(
        tmp_path,
        "cloud",
        "tenant",
        "create",
        "far",
        "--server",
        "postgresql://a:secret@h/d",
        "--database",
        postgres_url,
    )
    assert told.returncode == 2 and ".pgpass" in told.stderr and "secret" not in told.stderr
    told = cli(tmp_path, "cloud", "tenant", "create", "far", "--server", "postgresql://a@h/d")
    assert told.returncode == 2 and "PostgreSQL" in told.stderr
