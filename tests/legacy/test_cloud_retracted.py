"""Events of a retracted import do not count for the older API on a cloud, whatever came first, and count again after."""

from __future__ import annotations

import random
import sqlite3
from base64 import b64encode
from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from metricsd.cloud import older_fold, older_reads, older_retracted
from metricsd.cloud.pg_names import schema_of
from metricsd.cloud.postgres import PostgresBackend
from metricsd.cloud.tenants import get_tenant
from metricsd.cloud.upgrade import upgrade_all
from metricsd.hlc import Stamp
from metricsd.totals import bucket_of
from tests.cloud.support import CloudUnderTest, Device, Json, bearer, event
from tests.cloud.test_postgres_isolation import connected
from tests.legacy.test_cloud_writes import CALL, SESSION, Client, client_of

DAY_US = 86_400 * 1_000_000
BATCHES = (None, "run.1", "run.2", "run.10")
ROUNDS = 60
STEP = 7


class Imports:
    """A device's `import_batch` records: sets them in the cloud, and knows by itself what counts."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.inactive: dict[str, set[str]] = {}
        self.named: dict[str, set[str]] = {}
        self._revs: dict[str, str] = {}
        self._last: dict[str, Json] = {}

    async def set(self, name: str, *, active: bool, only: list[str] | None = None) -> None:
        fields: Json = {"active": active}
        if only is not None:
            fields["only"] = b64encode(b"".join(map(bytes.fromhex, only))).decode()
        await self._put(name, {"fields": fields})
        self.named[name] = set(only or ())
        self.inactive.pop(name, None)
        if not active:
            self.inactive[name] = self.named[name]

    async def delete(self, name: str) -> None:
        now = self.device.cloud.clock.now_us()
        await self._put(name, {"deleted": True, "stamp": Stamp(now // 1000, 0, self.device.id).text()})
        self.inactive[name] = self.named[name]

    async def repeat(self) -> None:
        """Push the last change of each record again, as after a lost answer."""
        for change in self._last.values():
            await self.device.put(change)

    def counts(self, one: Json) -> bool:
        batch = one.get("batch")
        if batch is None or batch in self.inactive:
            return batch is None
        return not any(name.startswith(f"{batch}!") and one["id"] in named for name, named in self.inactive.items())

    async def _put(self, name: str, said: Json) -> None:
        change = {"type": "import_batch", "id": name, "fields": {}, "base_rev": self._revs.get(name), **said}
        [result] = await self.device.put(change)
        assert result["status"] == "applied", result
        self._revs[name] = result["rev"]
        self._last[name] = change


def scanned(found: list[Json]) -> dict[str, Any]:
    """Return what events add up to, read one by one and without any sums kept."""
    cells: Counter[Any] = Counter()
    hours: Counter[Any] = Counter()
    calls: Counter[str] = Counter()
    sessions: dict[str, list[Json]] = {}
    for one in found:
        failed, ms = int(one["outcome"] == "failed"), one["duration_ms"]
        cell = (one["at"] // DAY_US, one["kind"], one["tool"], bucket_of(ms))
        cells.update({(*cell, "n"): 1, (*cell, "failed"): failed, (*cell, "ms"): ms})
        hours[one["at"] // DAY_US, one["at"] // (DAY_US // 24) % 24, one["kind"]] += 1
        sessions.setdefault(one["session"], []).append(one)
        calls[one["session"]] += one["kind"] == "tool_used"
    return {
        "cells": +cells,
        "hours": hours,
        "calls": +calls,
        "sessions": {
            name: (min(one["at"] for one in some), max(one["at"] for one in some), calls[name])
            for name, some in sessions.items()
        },
    }


async def folded(cloud: CloudUnderTest, client: Client, user: str, sessions: set[str]) -> dict[str, Any]:
    """Return the same by the sums that the older API answers from."""
    now = cloud.clock.now_us()
    async with cloud.backend.tenant(await get_tenant(cloud.backend.directory, "acme")) as store:
        nobody = older_reads.nothing(now)
        known = await store.ask(user, lambda person: older_reads.figures(person, 30, now, None), nobody, counted=True)
    cells: Counter[Any] = Counter()
    for cell in known.figures.cells:
        key = (cell.day, cell.kind, cell.tool, cell.bucket)
        cells.update({(*key, "n"): cell.n, (*key, "failed"): cell.failed, (*key, "ms"): cell.duration_ms})
    calls = {name: len(await client.data("GET", f"tool-metrics/{name}")) for name in sessions}
    return {
        "cells": +cells,
        "hours": {(one.day, one.hour, one.kind): one.n for one in known.figures.hours},
        "calls": {name: n for name, n in calls.items() if n},
        "sessions": {one.id: (one.started_at, one.last_at, one.tool_calls) for one in known.figures.sessions},
    }


def made(cloud: CloudUnderTest, dice: random.Random, seq: int) -> Json:
    return event(
        seq, at=cloud.clock.now_us() - dice.randrange(20 * DAY_US), session=f"s{dice.randrange(5)}",
        kind=dice.choice(("tool_used", "tool_used", "prompt_submitted", "session_started")),
        tool=dice.choice(("Edit", "Bash")), outcome=dice.choice(("ok", "failed")), duration_ms=dice.randrange(5000),
        batch=dice.choice(BATCHES),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many steps where the product would take one."""
    monkeypatch.setattr(older_fold, "_EVENTS", older_fold._EVENTS.replace(str(older_fold.STEP), str(STEP)))
    monkeypatch.setattr(older_fold, "STEP", STEP)
    monkeypatch.setattr(older_fold, "EMPTY_STEP", 5)
    monkeypatch.setattr(older_retracted, "SELECTIONS_PER_PAGE", 2)
    monkeypatch.setattr(older_retracted, "BATCHES_PER_QUERY", 2)


@pytest.mark.parametrize("seed", range(3))
async def test_the_sums_equal_a_full_scan(cloud: CloudUnderTest, seed: int) -> None:
    """After events, retractions, their undoing, deletions and repeats in any order, with looks in between."""
    dice = random.Random(seed)
    client, device = await client_of(cloud)
    await client_of(cloud, "bob")
    imports = Imports(device)
    sent: list[Json] = []
    selections: dict[str, list[str]] = {}
    looks = 0
    for _ in range(ROUNDS):
        match dice.choice(("push", "push", "switch", "select", "select", "toggle", "delete", "repeat", "look", "look")):
            case "push":
                some = [made(cloud, dice, len(sent) + n) for n in range(1, dice.randrange(2, 20))]
                await device.push(some, base_seq=len(sent))
                sent += some
            case "switch":
                await imports.set(dice.choice(BATCHES[1:]), active=dice.random() < 0.6)
            case "select" if sent:
                batch = dice.choice(BATCHES[1:])
                ids = [one["id"] for one in dice.sample(sent, min(len(sent), 6))] + [event()["id"]]
                name = f"{batch}!{len(selections)}"
                selections[name] = ids
                await imports.set(name, active=False, only=ids)
            case "toggle" if selections:
                name = dice.choice(sorted(selections))
                if dice.random() < 0.3:
                    # No device of ours does that: a name says the content.
                    selections[name] = [one["id"] for one in dice.sample(sent, min(len(sent), 6))]
                await imports.set(name, active=dice.random() < 0.5, only=selections[name])
            case "delete" if imports.named:
                await imports.delete(dice.choice(sorted(imports.named)))
            case "repeat":
                await imports.repeat()
                await device.push(sent)
            case "look":
                looks += 1
                wanted = scanned([one for one in sent if imports.counts(one)])
                assert await folded(cloud, client, "ann", {one["session"] for one in sent}) == wanted
    assert looks > ROUNDS // 10 and any(not imports.counts(one) for one in sent)


async def test_endpoints_tell_of_what_counts(cloud: CloudUnderTest) -> None:
    """Figures, the dashboard, lists and sessions: without a retracted import, with it again, and without a selection."""
    client, device = await client_of(cloud)
    now = cloud.clock.now_us()
    imported = [event(n, at=now, session="old", tool="Edit", batch="run.1", outcome="ok") for n in (1, 2)]
    await device.push([*imported, event(3, at=now, session="live", tool="Bash", outcome="ok")])
    imports = Imports(device)
    await imports.set("run.1", active=True)

    async def told() -> tuple[Counter[str], list[str], list[str], int]:
        tools = (await client.data("GET", "analytics/tools"))["top_tools"]
        shares = (await client.data("GET", "analytics/productivity"))["tool_usage_patterns"]
        assert set(shares) == {one["name"] for one in tools}
        board = (await client.data("GET", "dashboard/metrics"))["today_stats"]["tools_used"]
        sessions = [one["session_id"] for one in await client.data("GET", "sessions")]
        status = (await client.ask("GET", "analytics/sessions/old")).status_code
        return Counter({one["name"]: one["count"] for one in tools}), board, sessions, status

    everything = (Counter(Edit=2, Bash=1), ["Bash", "Edit"], ["old", "live"], 200)
    assert await told() == everything
    await imports.set("run.1", active=False)
    assert await told() == (Counter(Bash=1), ["Bash"], ["live"], 404)
    await imports.set("run.1", active=True)
    assert await told() == everything
    await imports.set("run.1!a", active=False, only=[imported[0]["id"]])
    assert await told() == (Counter(Edit=1, Bash=1), ["Bash", "Edit"], ["old", "live"], 200)
    await imports.set("run.1!a", active=False, only=[one["id"] for one in imported])
    assert await told() == (Counter(Bash=1), ["Bash"], ["live"], 404)
    reply = await cloud.http.delete(f"/sync/v1/devices/{device.id}/data", headers=bearer(device.token))
    assert reply.status_code == 200 and await told() == (Counter(), [], [], 404)


async def test_an_import_that_begins_or_is_described_counts_nothing_anew(cloud: CloudUnderTest) -> None:
    """A record that changes nothing about what counts costs no recount; a retraction costs its user one, nobody else."""
    client, device = await client_of(cloud)
    bob, _ = await client_of(cloud, "bob")
    imports = Imports(device)

    async def recounts(user: str) -> int:
        async with cloud.backend.tenant(await get_tenant(cloud.backend.directory, "acme")) as store:
            nobody = older_reads.nothing(0)
            known = await store.ask(user, lambda person: older_reads.figures(person, 7, 0, None), nobody, counted=True)
        return known.anew

    await device.push([event(1, at=cloud.clock.now_us(), batch="run.1")])
    await bob.data("POST", "tool-metrics", CALL)
    before = await recounts("ann"), await recounts("bob")
    await imports.set("run.1", active=True)
    await imports.set("run.1", active=True)
    await imports.set("run.1!a", active=True, only=[event()["id"]])
    await client.data("POST", "sessions", SESSION)
    assert (await recounts("ann"), await recounts("bob")) == before
    await imports.set("run.1", active=False)
    await imports.repeat()
    assert (await recounts("ann"), await recounts("bob")) == (before[0] + 1, before[1])


async def test_a_cloud_from_before_counts_anew(cloud: CloudUnderTest) -> None:
    """Sums that an older version made with retracted events in them are made anew after the schema step.

    Until it ran on PostgreSQL, devices are served, retractions too; the older API alone is not, and says what to do.
    """
    client, device = await client_of(cloud)
    await device.push([event(1, at=cloud.clock.now_us(), tool="Edit", batch="run.1", outcome="ok")])
    imports = Imports(device)

    async def tools(client: Client) -> list[str]:
        return [one["name"] for one in (await client.data("GET", "analytics/tools"))["top_tools"]]

    assert await tools(client) == ["Edit"]
    await imports.set("run.1", active=False)
    await become_older(cloud)
    async with cloud.another() as newer:
        if isinstance(newer.backend, PostgresBackend):
            reply = await Client(newer, client.token).ask("GET", "analytics/tools")
            assert (reply.status_code, reply.json()["code"]) == (503, "schema_not_ready")
            assert "migrate-schema" in reply.json()["detail"]
            await imports.set("run.1", active=True)
            await imports.set("run.1", active=False)
            assert [each.steps async for each in upgrade_all(newer.backend, newer.backend)] == [1]
        assert await tools(Client(newer, client.token)) == []


async def become_older(cloud: CloudUnderTest) -> None:
    """Make the tenant's database what it was before retractions counted, with the sums that it had."""
    undo = "ALTER TABLE legacy_fold DROP COLUMN stale"
    if isinstance(cloud.place, str):
        [tenant] = await cloud.backend.directory.list_tenants()
        async with connected(cloud.place) as db:
            await db.execute(f'SET search_path = "{schema_of(tenant.id)}"; {undo}; UPDATE head SET step = 3')
        return
    [path] = cloud.tenant_files()
    with closing(sqlite3.connect(path)) as file:
        file.executescript(f"{undo}; PRAGMA user_version = 5;")
