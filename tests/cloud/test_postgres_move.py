"""Moving an embedded cloud to PostgreSQL: whole tenants, compared, through a kill; devices go on as if nothing happened."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metricsd.cloud.access import Scope
from metricsd.cloud.audit import verify
from metricsd.cloud.backend import RecordBatch, RecordItem, Writer
from metricsd.cloud.enrolment import create_code
from metricsd.cloud.move import MoveFailed, move_cloud
from metricsd.cloud.pg_names import schema_of
from metricsd.cloud.policies import set_policy
from metricsd.cloud.postgres import PostgresBackend
from metricsd.cloud.sqlite import SqliteBackend
from metricsd.cloud.tenants import revoke_token
from metricsd.config import Cloud
from metricsd.hlc import Stamp
from metricsd.protocol import RecordChange
from tests.cloud.processes import ROOT
from tests.cloud.support import CloudUnderTest, Device, event, events, statuses
from tests.cloud.test_postgres_isolation import connected
from tests.fakes import FakeClock

TENANTS = ("acme", "rival", "silent")


def migrate(folder: Path, url: str, home: Path, *, crash: str = "") -> subprocess.CompletedProcess[str]:
    """Run `metricsd cloud migrate --json`."""
    environment = {**os.environ, "METRICSD_HOME": str(home), "PYTHONPATH": str(ROOT), "METRICSD_CRASH_AT": crash}
    return subprocess.run(
        [sys.executable, "-m", "metricsd", "cloud", "migrate", "--json", f"sqlite:{folder}", url],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


class Filled:
    """An embedded cloud with something of everything in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.devices: dict[str, Device] = {}
        self.readers: dict[str, Device] = {}
        self.cursors: dict[str, str] = {}
        self.feeds: dict[str, Any] = {}
        self.read_token = ""

    async def fill(self) -> None:
        async with CloudUnderTest(self.folder) as cloud:
            for name in TENANTS:
                self.devices[name] = device = await cloud.device(tenant=name)
                self.readers[name] = reader = await cloud.device(tenant=name)
                if name == "silent":
                    continue
                await self._write(cloud, name, device, reader)
            self.read_token = await cloud.token(Scope.READ)
            await create_code(cloud.backend.directory, "acme", "ann", 60, cloud.clock, actor="test")

    async def _write(self, cloud: CloudUnderTest, name: str, device: Device, reader: Device) -> None:
        batch = events(40, session=f"{name} \0 é", extra={"n": 1})
        batch[3]["id"] = "malformed"
        batch[4]["id"] = batch[5]["id"]
        await device.push(batch)
        self.cursors[name] = (await reader.changes())["cursor"]
        stamp = Stamp(cloud.clock.now_us() // 1000, 0, device.id).text()
        results = await device.put(
            {"type": "session", "id": "a\0b", "fields": {"tags": [name], "score": 1.5}, "stamps": {"tags": stamp}},
            {"type": "session", "id": "gone", "fields": {}, "deleted": True, "stamp": stamp},
        )
        assert [result["status"] for result in results] == ["applied"] * 2
        await device.push([event(), event()], query="?unsequenced=1")
        await set_policy(cloud.backend, name, b"version = 1\n", "p.toml", cloud.clock)
        self.feeds[name] = (await reader.feed(), (await reader.changes(self.cursors[name]))["items"])


@pytest.fixture
async def filled(tmp_path: Path) -> Filled:
    made = Filled(tmp_path / "cloud")
    await made.fill()
    return made


async def test_devices_go_on_as_if_nothing_had_happened(filled: Filled, postgres_url: str, tmp_path: Path) -> None:
    """Tokens, cursors, revisions, streams, policy and audit log are the same on the other side."""
    done = migrate(filled.folder, postgres_url, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["tenants"], told["already_there"], told["events"], told["records"]) == (3, 0, 80, 4)
    rows = {each["tenant"]: each["rows"] for each in told["results"]}
    assert [rows["acme"][name] for name in ("tenant", "user", "device", "token", "code")] == [1, 1, 2, 5, 1]
    async with CloudUnderTest(postgres_url) as cloud:
        for name in ("acme", "rival"):
            device, reader = filled.devices[name].on(cloud), filled.readers[name].on(cloud)
            assert (await reader.feed(), (await reader.changes(filled.cursors[name]))["items"]) == filled.feeds[name]
            told = await device.hello(acked_seq=40, cursor=filled.cursors[name])
            assert told["last_seq"] == 40 and "cursor_ok" not in told and told["policy_hash"]
            [record] = [item["record"] for item in filled.feeds[name][0] if item.get("record", {}).get("id") == "a\0b"]
            [applied] = await reader.put(
                {"type": "session", "id": "a\0b", "base_rev": record["rev"], "fields": {"score": 2}}
            )
            assert applied["status"] == "applied"
            assert (
                statuses((await device.push(events(3, first=41, tool="new"), base_seq=40))["results"]) == ["stored"] * 3
            )
            assert len((await reader.changes(filled.cursors[name]))["items"]) == len(filled.feeds[name][1]) + 3
        assert (await filled.devices["silent"].on(cloud).push(events(1)))["acked_through"] == 1
        assert (await cloud.get("/changes", filled.read_token)).status_code == 200
        verdict = await verify(cloud.backend.directory)
        assert verdict.fault is None


async def test_a_killed_move_leaves_whole_tenants_and_goes_on(
    filled: Filled, postgres_url: str, tmp_path: Path
) -> None:
    """Before and after a commit: what is there is whole and equal, the next run moves the rest."""
    for crash, there in (("before_commit:2", 1), ("after_commit:1", 2)):
        assert migrate(filled.folder, postgres_url, tmp_path / "home", crash=crash).returncode == -signal.SIGKILL
        async with CloudUnderTest(postgres_url) as cloud:
            assert len(await cloud.backend.directory.list_tenants()) == there
        async with connected(postgres_url) as db:
            assert await db.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname ~ '^t_'") == there
    told = json.loads(migrate(filled.folder, postgres_url, tmp_path / "home").stdout)
    assert (told["tenants"], told["already_there"]) == (3, 2)
    again = json.loads(migrate(filled.folder, postgres_url, tmp_path / "home").stdout)
    assert again["already_there"] == 3
    assert [each["digest"] for each in again["results"]] == [each["digest"] for each in told["results"]]


@pytest.mark.parametrize("where", ["source", "target"])
async def test_a_difference_is_found(filled: Filled, postgres_url: str, tmp_path: Path, where: str) -> None:
    """One changed value on either side: exit 1, and the sentence names the tenant, the table and what to do."""
    assert migrate(filled.folder, postgres_url, tmp_path / "home").returncode == 0
    async with CloudUnderTest(postgres_url) as cloud:
        acme = (await cloud.backend.directory.list_tenants())[0]
    if where == "target":
        async with connected(postgres_url) as db:
            await db.execute(f'UPDATE "{schema_of(acme.id)}".event SET at = at + 1 WHERE seq = 7')
    else:
        with closing(sqlite3.connect(filled.folder / f"{schema_of(acme.id)}.db")) as file, file:
            file.execute("UPDATE event SET at = at + 1 WHERE seq = 7")
    done = migrate(filled.folder, postgres_url, tmp_path / "home")
    assert done.returncode == 1
    assert "'acme'" in done.stderr and "event" in done.stderr and "run again" in done.stderr


async def test_a_token_that_was_revoked_between_two_tries_does_not_count_again(
    filled: Filled, postgres_url: str, tmp_path: Path
) -> None:
    """Who is in a tenant is compared like what is in it: a move that was stopped does not go on with old rights."""
    assert migrate(filled.folder, postgres_url, tmp_path / "home", crash="after_commit:1").returncode == -signal.SIGKILL
    async with CloudUnderTest(filled.folder) as cloud:
        [token] = [token for token in await cloud.backend.directory.list_tokens("acme") if token.scope is Scope.READ]
        await revoke_token(cloud.backend.directory, token.id, cloud.clock, actor="test")
    done = migrate(filled.folder, postgres_url, tmp_path / "home")
    assert done.returncode == 1 and "'acme'" in done.stderr and "token" in done.stderr


async def test_an_audit_log_that_cannot_go_along_is_noted(filled: Filled, postgres_url: str, tmp_path: Path) -> None:
    """The target has one of its own already: it keeps where the other one ended, once, so that the old folder's can be
    proven."""
    async with CloudUnderTest(postgres_url) as cloud:
        await cloud.tenant("was here before")
    async with CloudUnderTest(filled.folder) as cloud:
        old = await cloud.backend.directory.audit_head()
    for _ in range(2):
        assert migrate(filled.folder, postgres_url, tmp_path / "home").returncode == 0
    async with CloudUnderTest(postgres_url) as cloud:
        rows = await cloud.backend.directory.audit_page(0, 100)
        left = [row.act.subject for row in rows if row.act.action == "audit.left"]
        assert left == [f"{old.seq}:{old.hash.hex()}"]
        assert (await verify(cloud.backend.directory)).fault is None


async def test_what_is_written_behind_the_move_is_noticed(filled: Filled, postgres_url: str) -> None:
    """A server that was not stopped stores something in a tenant that was copied already: the move does not say done."""
    clock, settings = FakeClock(), Cloud()
    target = PostgresBackend(postgres_url, settings)
    async with CloudUnderTest(filled.folder) as cloud:
        [acme, *_] = await cloud.backend.directory.list_tenants()
        moving = move_cloud(SqliteBackend(filled.folder, settings), filled.folder, target, clock, actor="test")
        assert (await anext(moving)).tenant == "acme"
        # Its token was looked at before the move began.
        async with cloud.backend.tenant(acme) as store:
            batch = RecordBatch(device_id="d", items=[RecordItem(RecordChange(type="session", id="late"), None)])
            await store.push_records(Writer("ann", "d"), batch, clock.now_us())
        with pytest.raises(MoveFailed, match="'acme' was written to after"):
            async for _ in moving:
                continue
    await target.close()


async def test_a_server_that_still_writes_is_held_off(filled: Filled, postgres_url: str, tmp_path: Path) -> None:
    """A file that somebody writes to cannot be locked: nothing is moved, and the sentence says to stop the server."""
    with closing(sqlite3.connect(filled.folder / "directory.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        done = migrate(filled.folder, postgres_url, tmp_path / "home")
    assert done.returncode == 1 and "stop the server" in done.stderr
    async with CloudUnderTest(postgres_url) as cloud:
        assert await cloud.backend.directory.list_tenants() == []


def test_the_wrong_way_round_is_refused(tmp_path: Path) -> None:
    """With the line to write."""
    for source, target in (
        ("postgresql://h/d", "sqlite:/a"),
        ("sqlite:/a", "sqlite:/b"),
        ("sqlite:/none/there", "postgresql://h/d"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "metricsd", "cloud", "migrate", source, target],
            env={**os.environ, "METRICSD_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
