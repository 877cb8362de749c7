"""Deletions on the cloud: kept for 400 days, then told to whoever comes back later."""

from __future__ import annotations

from metricsd.cloud.comparing import EXPIRED_MAX, TOMBSTONE_DAYS
from metricsd.hlc import Stamp
from tests.cloud.support import CloudUnderTest, Device, Json, problem
from tests.fakes import FakeClock

DAY_S = 86_400.0
ID = "claude-code/s1"


def change(**fields: object) -> Json:
    return {"type": "session", "id": ID, "fields": {}, **fields}


async def made(device: Device) -> str:
    [result] = await device.put(change(fields={"tags": ["a"], "score": 1}))
    return str(result["rev"])


async def delete(device: Device, rev: str, clock: FakeClock) -> str:
    stamp = Stamp(clock.now_us() // 1000, 0, device.id).text()
    [result] = await device.put(change(base_rev=rev, deleted=True, stamp=stamp))
    return str(result["rev"])


async def other_push(device: Device) -> None:
    """Any push clears expired tombstones away."""
    await device.put({"type": "session", "id": "claude-code/other", "fields": {"score": 5}})


async def test_a_tombstone_is_kept_for_400_days_by_the_servers_clock(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """A device in the wrong year cannot make it go earlier."""
    device, other = await cloud.device(), await cloud.device()
    rev = await made(device)
    await device.put(change(base_rev=rev, deleted=True, stamp=Stamp(1000, 0, device.id).text()))
    clock.advance(TOMBSTONE_DAYS * DAY_S - 60)
    await other_push(device)
    assert [item["record"]["id"] for item in await other.feed()] == [ID, "claude-code/other"]
    clock.advance(120)
    await device.put({"type": "session", "id": "claude-code/third", "fields": {"score": 5}})
    assert ID not in [item["record"]["id"] for item in await other.feed()]


async def test_what_takes_an_import_out_is_kept_for_ever(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """Without it the import's events would count again."""
    device, other = await cloud.device(), await cloud.device()
    batch = {"type": "import_batch", "id": "r1.1", "fields": {"active": True}}
    [made_batch] = await device.put(batch)
    stamp = Stamp(clock.now_us() // 1000, 0, device.id).text()
    await device.put({**batch, "fields": {}, "base_rev": made_batch["rev"], "deleted": True, "stamp": stamp})
    clock.advance(TOMBSTONE_DAYS * DAY_S + 60)
    await other_push(device)
    assert [item["record"]["id"] for item in await other.feed()] == ["r1.1", "claude-code/other"]


async def test_a_cursor_from_before_the_horizon_is_gone_and_one_behind_it_is_not(
    cloud: CloudUnderTest, clock: FakeClock
) -> None:
    """410 `cursor_expired`: that device may have missed a deletion. Hello still knows the cursor's history."""
    device, other = await cloud.device(), await cloud.device()
    rev = await made(device)
    before = (await other.changes())["cursor"]
    await delete(device, rev, clock)
    after = (await other.changes())["cursor"]
    clock.advance(TOMBSTONE_DAYS * DAY_S + 60)
    await other_push(device)
    assert problem(await other.try_changes(before)) == (410, "cursor_expired")
    assert "cursor_ok" not in await other.hello(cursor=before), "left out when it is true"
    assert (await other.try_changes(after)).status_code == 200
    assert (await other.try_changes("")).status_code == 200


async def test_an_old_base_of_an_expired_record_gets_a_tombstone_to_build_on(
    cloud: CloudUnderTest, clock: FakeClock
) -> None:
    """What was deleted stays deleted; who knows that may bring it back, whole."""
    device, other = await cloud.device(), await cloud.device()
    rev = await made(device)
    await delete(device, rev, clock)
    clock.advance(TOMBSTONE_DAYS * DAY_S + 60)
    await other_push(device)
    [told] = await other.put(change(base_rev=rev, fields={"tags": ["b"]}))
    assert told["status"] == "conflict" and told["current"]["deleted"] is True
    assert ID not in [item["record"]["id"] for item in await other.feed()]
    [revived] = await other.put(change(base_rev=told["current"]["rev"], fields={"tags": ["b"]}))
    assert revived["status"] == "applied"
    [item] = [item for item in await device.feed() if item["record"]["id"] == ID]
    assert item["record"]["fields"] == {"tags": ["b"]}


async def test_a_change_of_nothing_on_the_current_base_makes_no_change(cloud: CloudUnderTest) -> None:
    """Asking whether a base still stands must not send every record round again."""
    device, other = await cloud.device(), await cloud.device()
    rev = await made(device)
    cursor = (await other.changes())["cursor"]
    [result] = await other.put(change(base_rev=rev))
    assert result == {"status": "applied", "rev": rev}
    assert (await other.changes(cursor))["items"] == []
    [item] = await other.feed()
    assert (item["record"]["rev"], item["device"]) == (rev, device.id)


async def test_many_expired_tombstones_go_in_portions(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """One push never pays for all of them."""
    device = await cloud.device()
    stamp = Stamp(clock.now_us() // 1000, 0, device.id).text()
    dead = [
        {"type": "session", "id": f"s{n}", "fields": {}, "deleted": True, "stamp": stamp}
        for n in range(EXPIRED_MAX + 5)
    ]
    await device.put(*dead)
    clock.advance(TOMBSTONE_DAYS * DAY_S + 60)
    other = await cloud.device()
    await other_push(device)
    assert len(await other.feed()) == 5 + 1
    await device.put({"type": "session", "id": "more", "fields": {"score": 1}})
    assert len(await other.feed()) == 2
