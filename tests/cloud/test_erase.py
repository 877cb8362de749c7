"""`DELETE /devices/{id}/data`: a user takes back what one device wrote."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import httpx
import pytest

from metricsd.cloud import sqlite_erase
from metricsd.cloud.access import Scope
from metricsd.cloud.backend import EventBatch, EventItem, Writer
from metricsd.cloud.problems import Refused
from metricsd.hlc import Stamp, parse_stamp
from metricsd.protocol import WireEvent
from tests.cloud.support import CloudUnderTest, Device, Json, bearer, event, events, ok, problem
from tests.fakes import FakeClock

NOW_MS = FakeClock().now_us() // 1000


async def erase(cloud: CloudUnderTest, device_id: str, token: str) -> httpx.Response:
    return await cloud.http.delete(f"/sync/v1/devices/{device_id}/data", headers=bearer(token))


def stamp(device: Device, ms: int = NOW_MS) -> str:
    return Stamp(ms, 0, device.id).text()


def note(device: Device, record_id: str, text: str, *, ms: int = NOW_MS, base_rev: str | None = None) -> Json:
    """Return a change of a session's description, stamped by the device."""
    made = {"type": "session", "id": record_id, "fields": {"description": text}}
    return {**made, "stamps": {"description": stamp(device, ms)}, "base_rev": base_rev}


def counters(device: Device, session: str = "s1") -> Json:
    return {"type": "session_counters", "id": f"{device.id}/claude-code/{session}", "fields": {"events": 2}}


async def records_of(device: Device) -> dict[str, Json]:
    return {item["record"]["id"]: item["record"] for item in await device.feed() if "record" in item}


async def test_other_devices_are_served_none_of_it_and_hear_of_it(cloud: CloudUnderTest) -> None:
    """Events go from the feed; records and counters come as empty tombstones behind the cursor of who had them."""
    gone, kept = await cloud.device(), await cloud.device()
    await gone.push(events(3, project="canary"))
    await gone.push([event(project="canary")], query="?unsequenced=1")
    await gone.put(note(gone, "a", "canary"), counters(gone))
    await kept.push([event(1)])
    await kept.put(note(kept, "b", "mine"))
    cursor = (await kept.changes())["cursor"]
    reply = ok(await erase(cloud, gone.id, kept.token))
    assert reply == {"device_id": gone.id, "events": 4, "records": 2}
    told = (await kept.changes(cursor))["items"]
    assert {(i["record"]["id"], i["record"]["deleted"], "fields" in i["record"]) for i in told} == {
        ("a", True, False), (f"{gone.id}/claude-code/s1", True, False),
    }  # fmt: skip
    reader = await cloud.token(Scope.READ)
    whole = await cloud.get("/changes", reader)
    assert "canary" not in whole.text and "mine" in whole.text
    assert len([item for item in whole.json()["items"] if "event" in item]) == 1


async def test_what_others_also_wrote_stays(cloud: CloudUnderTest) -> None:
    """A record with a field of another device, or one that another device wrote last, is not that device's alone."""
    gone, kept = await cloud.device(), await cloud.device()
    [first] = await gone.put(note(gone, "theirs last", "x"))
    await kept.put(note(kept, "theirs last", "y", base_rev=first["rev"]))
    [second] = await kept.put(
        {"type": "session", "id": "mixed", "fields": {"tags": ["t"]}, "stamps": {"tags": stamp(kept)}}
    )
    await gone.put(note(gone, "mixed", "x", base_rev=second["rev"]))
    assert ok(await erase(cloud, gone.id, kept.token))["records"] == 0
    found = await records_of(kept)
    assert found["theirs last"]["fields"] == {"description": "y"}
    assert found["mixed"]["fields"] == {"tags": ["t"], "description": "x"}


async def test_the_device_is_revoked_and_may_only_ask_again(cloud: CloudUnderTest) -> None:
    """So its next sync uploads nothing; the same call, whose answer may have been lost, is answered again."""
    device, other = await cloud.device(), await cloud.device()
    await device.push(events(2))
    assert ok(await erase(cloud, device.id, device.token))["events"] == 2
    assert ok(await erase(cloud, device.id, device.token)) == {"device_id": device.id, "events": 0, "records": 0}
    assert problem(await device.try_push(events(2, first=3), base_seq=2)) == (401, "bad_token")
    assert problem(await cloud.post("/devices", {"name": "x", "parent": device.id}, device.token)) == (401, "bad_token")
    assert problem(await erase(cloud, other.id, device.token)) == (401, "bad_token")
    assert await other.feed() == []
    [row] = [row for row in await cloud.backend.directory.list_devices("acme") if row.id == device.id]
    assert not row.live and row.erased_at == cloud.clock.now_us()


async def test_a_push_that_got_in_before_brings_nothing_back(cloud: CloudUnderTest) -> None:
    """The store refuses what was authenticated before the erasure and is written after it."""
    device = await cloud.device()
    await device.push([event(1)])
    [tenant] = await cloud.backend.directory.list_tenants()
    ok(await erase(cloud, device.id, device.token))
    late = WireEvent(id="e" * 32, at=1, kind="k", name="n", app="a", seq=2)
    items = [EventItem(2, bytes.fromhex(late.id), late, None)]
    async with cloud.backend.tenant(tenant) as store:
        with pytest.raises(Refused, match="device_erased"):
            await store.push_events(
                Writer("ann", device.id), EventBatch(device_id=device.id, epoch=1, base_seq=1, items=items)
            )


async def test_whose_device_may_be_named(cloud: CloudUnderTest) -> None:
    """One's own user's by a device token, any of the tenant by an admin token; every other id is 404, known or not."""
    mine, colleagues, rivals = (
        await cloud.device(), await cloud.device(user="bob"), await cloud.device(tenant="rival"),
    )  # fmt: skip
    await colleagues.push([event(1)])
    answers = {
        (await erase(cloud, named, mine.token)).text
        for named in (colleagues.id, rivals.id, "0" * 32, "nonsense", "%00", "x" * 200)
    }
    assert len(answers) == 1 and '"no_device"' in answers.pop()
    admin = await cloud.token(Scope.ADMIN, user="boss")
    assert problem(await erase(cloud, rivals.id, admin)) == (404, "no_device")
    assert ok(await erase(cloud, colleagues.id, admin))["events"] == 1
    for scope in (Scope.ENROL, Scope.READ, Scope.LEGACY):
        assert problem(await erase(cloud, mine.id, await cloud.token(scope))) == (403, "wrong_scope")
    assert await (await cloud.device(tenant="rival")).feed() == []


async def test_the_deletion_is_later_than_every_edit(cloud: CloudUnderTest) -> None:
    """A record that was stamped ahead of the server's clock must not come back by it."""
    device, other = await cloud.device(), await cloud.device()
    ahead = NOW_MS + 60_000
    await device.put(note(device, "a", "x", ms=ahead), note(device, "b", "x"))
    await erase(cloud, device.id, other.token)
    found = await records_of(other)
    assert parse_stamp(found["a"]["stamp"]).ms > ahead and parse_stamp(found["b"]["stamp"]).ms >= NOW_MS


@pytest.mark.only_sqlite
async def test_much_data_goes_in_small_steps(cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one step of each kind; of two devices that interleave only the one's is taken."""
    for name in ("_EVENTS", "_BINDINGS", "_EVENT_WINDOW", "_RECORD_WINDOW"):
        text = getattr(sqlite_erase, name)
        monkeypatch.setattr(sqlite_erase, name, text.replace(str(sqlite_erase.ROWS_PER_STEP), "7"))
    gone, kept = await cloud.device(), await cloud.device()
    for turn in range(6):
        await gone.push(events(10, first=turn * 10 + 1), base_seq=turn * 10)
        await kept.push(events(10, first=turn * 10 + 1), base_seq=turn * 10)
        await gone.push([event() for _ in range(5)], query="?unsequenced=1")
        await gone.put(*(note(gone, f"{turn}-{number}", "x") for number in range(5)))
        await kept.put(*(note(kept, f"k{turn}-{number}", "x") for number in range(5)))
    assert ok(await erase(cloud, gone.id, kept.token)) == {"device_id": gone.id, "events": 90, "records": 30}
    reader = await cloud.token(Scope.READ)
    items = ok(await cloud.get("/changes?limit=1000", reader))["items"]
    assert {item["device"] for item in items if "event" in item} == {kept.id}
    assert len([item for item in items if "event" in item]) == 60
    assert len([item for item in items if "record" in item and not item["record"].get("deleted")]) == 30


async def test_logging_in_again_is_a_new_device_that_may_write(cloud: CloudUnderTest) -> None:
    """Taking data back is no ban: the same events may come again, because somebody decided so."""
    device = await cloud.device()
    pushed = events(2)
    await device.push(pushed)
    ok(await erase(cloud, device.id, device.token))
    again = await cloud.device()
    assert [result["status"] for result in (await again.push(pushed))["results"]] == ["stored", "stored"]


@pytest.mark.only_sqlite
async def test_what_was_taken_back_is_not_in_the_file(cloud: CloudUnderTest) -> None:
    """Rows are overwritten, not only unlinked: what is in no word list is in no byte of the file."""
    device = await cloud.device()
    await device.push([event(1, call="canary-call", extra={"canary-key": "canary-extra"})])
    await device.put(note(device, "a", "canary-text"))
    ok(await erase(cloud, device.id, device.token))
    [path] = cloud.tenant_files()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.with_name(path.name + "-wal").stat().st_size == 0
    assert b"canary" not in path.read_bytes()
