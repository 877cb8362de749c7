"""A cloud whose clock was years ahead for a while, and devices whose clocks are: nothing is lost or refused for it.

On SQLite nothing ever goes by its age but tombstones; retention, which PostgreSQL has, is in test_postgres_retention.
"""

from __future__ import annotations

from metricsd.cloud.access import Scope
from metricsd.cloud.rate import Amount
from metricsd.hlc import Stamp
from tests.cloud.support import CloudUnderTest, Device, Json, event, statuses
from tests.fakes import FakeClock
from tests.legacy.test_cloud_writes import CALL, SESSION, Client

YEARS_S = 10 * 365 * 86_400.0


def change(device: Device, clock: FakeClock, **fields: object) -> Json:
    stamp = Stamp(clock.now_us() // 1000, 0, device.id).text()
    return {"type": "session", "id": "claude-code/s1", "fields": fields, "stamps": dict.fromkeys(fields, stamp)}


async def test_events_of_every_time_are_kept(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """What came before, during and after a wrong clock of the cloud, and events from the far future, each once."""
    device, other = await cloud.device(), await cloud.device()
    now = clock.now_us()
    sent = [event(1, at=now), event(2, at=now + round(YEARS_S) * 10 * 1_000_000), event(3, at=0)]
    await device.push(sent)
    for seq, jump in enumerate((YEARS_S, -YEARS_S, -2 * YEARS_S, 2 * YEARS_S), 4):
        clock.jump(jump)
        sent.append(event(seq, at=now + seq))
        assert statuses((await device.push(sent[-1:], base_seq=seq - 1))["results"]) == ["stored"]
    assert [item["event"]["id"] for item in await other.feed()] == [one["id"] for one in sent]
    assert statuses((await device.push(sent))["results"]) == ["duplicate"] * len(sent)


async def test_records_are_edited_and_deleted_through_it(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """A deletion is told to who was away, though its tombstone went; edits are taken on top of what came meanwhile."""
    device, other = await cloud.device(), await cloud.device()
    [made] = await device.put(change(device, clock, score=1))
    [gone] = await device.put(change(device, clock, score=1) | {"id": "claude-code/s2"})
    deletion = {"type": "session", "id": "claude-code/s2", "fields": {}, "deleted": True, "base_rev": gone["rev"]}
    [deleted] = await device.put(deletion | {"stamp": Stamp(clock.now_us() // 1000, 0, device.id).text()})
    assert deleted["status"] == "applied"
    clock.jump(YEARS_S)
    [during] = await device.put(change(device, FakeClock(), score=2) | {"base_rev": made["rev"]})
    clock.jump(-YEARS_S)
    [after] = await device.put(change(device, clock, score=3) | {"base_rev": during["rev"]})
    assert (during["status"], after["status"]) == ("applied", "applied")
    [told] = await other.put(change(other, clock, score=4) | {"id": "claude-code/s2", "base_rev": gone["rev"]})
    assert told["status"] == "conflict" and told["current"]["deleted"] is True
    fields = {item["record"]["id"]: item["record"].get("fields") for item in await other.feed()}
    assert fields == {"claude-code/s1": {"score": 3}}


async def test_the_older_api_goes_on_after_it(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """Its edits are stamped by the cloud's clock: what was stamped while it was ahead can be edited afterwards."""
    await cloud.device()
    client = Client(cloud, await cloud.token(Scope.LEGACY))
    clock.jump(YEARS_S)
    await client.data("POST", "sessions", SESSION)
    clock.jump(-YEARS_S)
    await client.data("POST", "tool-metrics", CALL)
    counted = SESSION | {"end_time": "2026-01-05T09:00:00Z", "workflow_metrics": {"git_commits": 2}}
    await client.data("PUT", "sessions/s-1", counted)
    assert (await client.data("GET", "analytics/sessions/s-1"))["productivity_score"] == 54
    await client.data("DELETE", "sessions/s-1")
    assert (await client.ask("GET", "sessions/s-1")).status_code == 404


async def test_sums_of_minutes_are_forgotten_after_it(cloud: CloudUnderTest) -> None:
    """Those of the far future at once, and those of later minutes as ever: they do not pile up until that time."""
    await cloud.tenant()
    [tenant] = await cloud.backend.directory.list_tenants()

    async def spent(minute: int) -> int:
        return (await cloud.backend.meter.spend(tenant, minute, Amount(1, 0))).requests

    far = 10 * 365 * 1440
    assert [await spent(minute) for minute in (far, 7, 7, 12)] == [0, 0, 1, 0]
    assert (await spent(12), await spent(7), await spent(far)) == (1, 0, 0)
