"""Two real daemons and a cloud on a real PostgreSQL: enrolled by commands, synced through deaths of server and database."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.homes import Home, opened, stop, tool_use, until
from tests.postgres import Cluster, NoPostgres, own_cluster

QUICK = {
    "METRICSD_SYNC_REALTIME": "false",
    "METRICSD_CLOUD_DATABASE_TIMEOUT_S": "3",
}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of this test's own, with full durability, because it is killed."""
    try:
        with own_cluster(durable=True) as made:
            yield made
    except NoPostgres as error:
        pytest.skip(f"NO POSTGRESQL, so the cloud on it is not tested: {error}")


@contextmanager
def serving(admin: Home, port: int, url: str) -> Iterator[subprocess.Popen[str]]:
    """`cloud serve` on a fixed port, as behind a name that devices know."""
    process = admin.start("cloud", "serve", "--port", str(port), "--json", "--database", url)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["url"].endswith(f":{port}")
    try:
        yield process
    finally:
        stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sync(home: Home) -> dict[str, object]:
    done = home.run("sync", "--now", "--json")
    found: dict[str, object] = json.loads(done.stdout or "{}")
    return found


def test_daemons_sync_through_postgresql_and_through_its_death(tmp_path: Path, cluster: Cluster) -> None:
    """What one laptop captures arrives on the other, before, between and after kills; the cloud holds each event once."""
    owner = cluster.url()
    port = free_port()
    with (
        opened(tmp_path / "admin", **QUICK) as admin,
        opened(tmp_path / "laptop", **QUICK) as laptop,
        opened(tmp_path / "desktop", **QUICK) as desktop,
    ):
        admin.ok("cloud", "tenant", "create", "acme", "--database", owner)
        ingest = asyncio.run(ingest_login(owner))
        url = cluster.url(user=ingest)
        with serving(admin, port, url):
            for home in (laptop, desktop):
                create = (
                    "cloud",
                    "token",
                    "create",
                    "--tenant",
                    "acme",
                    "--user",
                    "ann",
                    "--json",
                    "--database",
                    owner,
                )
                token = json.loads(admin.ok(*create))["token"]
                home.ok("login", f"http://127.0.0.1:{port}", "--token-stdin", stdin=token)
                home.start_daemon()
            for number in range(5):
                laptop.capture("PostToolUse", tool_use(number))
            until(lambda: laptop.events() == 5)
            assert sync(laptop)["ok"] and sync(desktop)["ok"]
            assert desktop.events() == 5

        # The server is gone: captures go on, nothing is lost.
        for number in range(5, 10):
            laptop.capture("PostToolUse", tool_use(number))
        until(lambda: laptop.events() == 10)
        assert sync(laptop).get("ok") is not True
        cluster.kill()
        with serving(admin, port, url):
            # The database is gone, the server answers 503.
            assert sync(laptop).get("ok") is not True
            cluster.start()
            until(lambda: sync(laptop).get("ok") is True, 40)
            until(lambda: sync(desktop).get("ok") is True, 40)
            assert desktop.events() == 10
            desktop.capture("PostToolUse", tool_use(100, "s-2"))
            until(lambda: desktop.events() == 11)
            assert sync(desktop)["ok"] and sync(laptop)["ok"]
            assert laptop.events() == 11
        stats = json.loads(admin.ok("cloud", "stats", "--json", "--database", owner))
        assert [row["events"] for row in stats] == [11]
        assert admin.run("cloud", "audit", "verify", "--database", owner).returncode == 0


async def ingest_login(url: str) -> str:
    """Return the login that an administrator gives to the server."""
    db = await asyncpg.connect(url)
    try:
        name: str = await db.fetchval("SELECT ingest FROM metricsd_control.instance")
        return name
    finally:
        await db.close()
