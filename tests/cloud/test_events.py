"""A device's stream: what is stored, replayed, refused, and what hello tells of it."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from tests.cloud.support import CloudUnderTest, Device, bearer, event, events, ok, problem, statuses


async def test_events_are_stored_and_acknowledged(cloud: CloudUnderTest) -> None:
    """Results come in the order of the items; the acknowledgement is the last position."""
    device = await cloud.device()
    reply = await device.push(events(3))
    assert statuses(reply["results"]) == ["stored"] * 3
    assert reply["acked_through"] == 3
    assert reply["server_time"] == cloud.clock.now_us()


async def test_every_field_survives_the_round_trip(cloud: CloudUnderTest) -> None:
    """What one device sends, another receives, field by field."""
    device, other = await cloud.device(), await cloud.device()
    full: dict[str, Any] = {
        **event(1),
        **{name: f"{name} é" for name in ("session", "tool", "outcome", "call", "project", "branch", "model")},
        **{name: f"{name} x" for name in ("agent", "subject", "reason", "batch")},
        **dict.fromkeys(("duration_ms", "input_bytes", "output_bytes"), -(1 << 63)),
        "lines_added": (1 << 63) - 1,
        "lines_removed": 0,
        "extra": {"total_tokens": 5, "kind of": "x\u0000y"},
    }
    await device.push([full])
    [item] = await other.feed()
    assert item == {"device": device.id, "event": full}


async def test_a_lost_answer_is_given_again(cloud: CloudUnderTest) -> None:
    """The same batch again changes nothing and acknowledges the same, rejections included."""
    device, other = await cloud.device(), await cloud.device()
    batch = events(4)
    batch[1]["id"] = "not hex"
    batch[2]["at"] = -1
    first = await device.push(batch)
    again = await device.push(batch)
    assert statuses(first["results"]) == ["stored", "rejected", "rejected", "stored"]
    assert statuses(again["results"]) == ["duplicate", "rejected", "rejected", "duplicate"]
    assert [r.get("reason") for r in again["results"]] == [r.get("reason") for r in first["results"]]
    assert all("device" not in result for result in again["results"])
    assert first["acked_through"] == again["acked_through"] == 4
    assert len(await other.feed()) == 2


async def test_a_batch_may_overlap_what_is_settled(cloud: CloudUnderTest) -> None:
    """Old positions are duplicates, new ones are stored."""
    device = await cloud.device()
    all_events = events(5)
    await device.push(all_events[:3])
    reply = await device.push(all_events[1:], base_seq=1)
    assert statuses(reply["results"]) == ["duplicate", "duplicate", "stored", "stored"]
    assert reply["acked_through"] == 5


async def test_positions_that_are_not_there_are_settled_too(cloud: CloudUnderTest) -> None:
    """A batch covers (base, last] whole: holes never come."""
    device = await cloud.device()
    await device.push([event(3), event(9)])
    assert (await device.hello())["last_seq"] == 9
    assert problem(await device.try_push([event(5)], base_seq=4)) == (409, "stream_fork")


async def test_a_base_beyond_the_end_is_a_gap(cloud: CloudUnderTest) -> None:
    """The refusal names where the stream stands, and nothing is stored."""
    device = await cloud.device()
    await device.push(events(2))
    reply = await device.try_push(events(1, first=5), base_seq=4)
    assert problem(reply) == (409, "gap")
    assert reply.json()["last_seq"] == 2 and "last_seq=2" in reply.json()["detail"]
    assert (await device.hello())["last_seq"] == 2


async def test_another_event_at_a_settled_position_is_a_fork(cloud: CloudUnderTest) -> None:
    """Nothing of the batch is stored, the part that would have been new included."""
    device, other = await cloud.device(), await cloud.device()
    mine = events(2)
    await device.push(mine)
    reply = await device.try_push([mine[0], event(2), event(3)])
    assert problem(reply) == (409, "stream_fork")
    assert reply.json()["last_seq"] == 2
    assert (await device.hello())["last_seq"] == 2
    assert len(await other.feed()) == 2


async def test_a_new_epoch_starts_where_it_says_and_an_old_one_is_a_fork(cloud: CloudUnderTest) -> None:
    """Only the newest epoch of a device can grow."""
    device = await cloud.device()
    await device.push(events(2))
    reply = await device.push(events(1, first=101), base_seq=100, epoch=2)
    assert reply["acked_through"] == 101
    for position in (3, 102):
        refused = await device.try_push(events(1, first=position), base_seq=position - 1, epoch=1)
        assert problem(refused) == (409, "stream_fork")
    told = await device.hello(epoch=1, acked_seq=2)
    assert (told["epoch"], told["last_seq"]) == (2, 101)


async def test_an_event_of_another_device_is_a_duplicate_that_names_it(cloud: CloudUnderTest) -> None:
    """The same fact seen by two devices is one event; the position of the second is settled all the same."""
    first, second = await cloud.device(), await cloud.device()
    shared = event(1)
    await first.push([shared])
    reply = await second.push([shared, event(2)])
    assert reply["results"] == [{"status": "duplicate", "device": first.id}, {"status": "stored"}]
    assert reply["acked_through"] == 2
    again = await second.push([shared], base_seq=0)
    assert again["results"] == [{"status": "duplicate", "device": first.id}]
    assert (await second.hello(acked_seq=1))["id_at_acked"] == shared["id"]


async def test_the_same_event_twice_in_a_batch_is_one(cloud: CloudUnderTest) -> None:
    """The second position is settled as a duplicate of the first."""
    device = await cloud.device()
    one = event(1)
    reply = await device.push([one, {**one, "seq": 2}])
    assert statuses(reply["results"]) == ["stored", "duplicate"]


_TOO_LONG = "x" * 201


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"id": "zz" * 16}, "bad_id"),
        ({"id": "ab"}, "bad_id"),
        ({"id": ""}, "bad_id"),
        ({"at": -1}, "out_of_range: at"),
        ({"at": 1 << 62}, "out_of_range: at"),
        ({"kind": _TOO_LONG}, "too_long: kind"),
        ({"name": ""}, "empty: name"),
        ({"tool": _TOO_LONG}, "too_long: tool"),
        ({"duration_ms": 1 << 63}, "out_of_range: duration_ms"),
        ({"lines_removed": -(1 << 63) - 1}, "out_of_range: lines_removed"),
        ({"extra": {str(n): n for n in range(17)}}, "too_many: extra"),
        ({"extra": {"a": 1 << 70}}, "out_of_range: extra"),
        ({"extra": {"a": _TOO_LONG}}, "too_long: extra"),
        ({"extra": {"a": {"b": 1}}}, "malformed"),
        ({"at": "yesterday"}, "malformed"),
        ({"app": None}, "malformed"),
        ({"id": 7}, "malformed"),
    ],
)
async def test_one_wrong_event_is_rejected_alone(cloud: CloudUnderTest, wrong: dict[str, Any], reason: str) -> None:
    """Its neighbours are stored, its position is settled, the batch is never refused for it."""
    device = await cloud.device()
    batch = events(3)
    batch[1] |= wrong
    reply = await device.push(batch)
    assert statuses(reply["results"]) == ["stored", "rejected", "stored"]
    assert reply["results"][1]["reason"] == reason
    assert reply["acked_through"] == 3
    assert (await device.push(batch))["results"][1] == {"status": "rejected", "reason": reason}


async def test_an_event_that_is_not_utf8_is_rejected_alone(cloud: CloudUnderTest) -> None:
    """Its position can still be read, so its neighbours are stored."""
    device = await cloud.device()
    body = {"device_id": device.id, "epoch": 1, "base_seq": 0, "events": [event(1), event(2, tool="@@"), event(3)]}
    raw = json.dumps(body).encode().replace(b"@@", b"\xff\xfe")
    reply = ok(await cloud.http.post("/sync/v1/events", content=raw, headers=bearer(device.token)))
    assert statuses(reply["results"]) == ["stored", "rejected", "stored"]
    assert reply["results"][1]["reason"] == "malformed"


async def test_names_of_the_longest_length_are_kept(cloud: CloudUnderTest) -> None:
    """The bound is 200 characters, counted as characters."""
    device = await cloud.device()
    assert statuses((await device.push([event(1, tool="é" * 200, extra={"a": "é" * 200})]))["results"]) == ["stored"]


async def test_a_clock_years_ahead_is_stored(cloud: CloudUnderTest) -> None:
    """The event is a fact, whatever its clock said."""
    device = await cloud.device()
    ahead = cloud.clock.now_us() + 10 * 365 * 86_400_000_000
    assert statuses((await device.push([event(1, at=ahead)]))["results"]) == ["stored"]


@pytest.mark.parametrize("order", [[2, 1], [1, 1], [0], [-1], [1 << 63]])
async def test_positions_must_grow(cloud: CloudUnderTest, order: list[int]) -> None:
    """A batch out of order could acknowledge what was never sent: it is refused as a whole."""
    device = await cloud.device()
    assert (await device.try_push([event(seq) for seq in order])).status_code == 400
    assert (await device.hello())["last_seq"] == 0


async def test_an_empty_batch_is_fine(cloud: CloudUnderTest) -> None:
    """It settles nothing and tells where the stream stands."""
    device = await cloud.device()
    assert (await device.push([]))["acked_through"] == 0
    await device.push(events(2))
    assert (await device.push([], base_seq=2))["acked_through"] == 2
    assert (await device.hello(acked_seq=2))["last_seq"] == 2


async def test_hello_compares_the_stream(cloud: CloudUnderTest) -> None:
    """It tells the end of the stream and the id at the device's acknowledged position."""
    device = await cloud.device()
    told = await device.hello()
    assert (told["epoch"], told["last_seq"]) == (1, 0)
    assert "last_id" not in told and "id_at_acked" not in told
    batch = events(3)
    await device.push(batch)
    told = await device.hello(acked_seq=2)
    assert told["last_seq"] == 3
    assert told["last_id"] == batch[2]["id"]
    assert told["id_at_acked"] == batch[1]["id"]
    assert "id_at_acked" not in await device.hello(acked_seq=4)


async def test_hello_knows_the_ids_of_rejected_positions(cloud: CloudUnderTest) -> None:
    """Otherwise a device whose last event was rejected would take the cloud for restored."""
    device = await cloud.device()
    valid_id, wrong_id = event(1, at=-1), event(2, id="wrong id")
    await device.push([valid_id, wrong_id])
    assert (await device.hello(acked_seq=1))["id_at_acked"] == valid_id["id"]
    assert (await device.hello(acked_seq=2, acked_id="wrong id"))["id_at_acked"] == "wrong id"


async def test_unsequenced_events_take_part_by_id_alone(cloud: CloudUnderTest) -> None:
    """They are stored once, and a later sequenced push settles their positions as duplicates."""
    device, other = await cloud.device(), await cloud.device()
    loose = [event(), event()]
    query = "?unsequenced=1"
    assert statuses((await device.push(loose, query=query))["results"]) == ["stored", "stored"]
    assert statuses((await device.push(loose, query=query))["results"]) == ["duplicate", "duplicate"]
    assert (await device.hello())["last_seq"] == 0
    later = [{**item, "seq": number} for number, item in enumerate(loose, 1)]
    reply = await device.push(later)
    assert reply["results"] == [{"status": "duplicate"}, {"status": "duplicate"}]
    assert reply["acked_through"] == 2
    assert (await device.hello(acked_seq=2))["id_at_acked"] == loose[1]["id"]
    assert len(await other.feed()) == 2


async def test_unsequenced_rejections_settle_nothing(cloud: CloudUnderTest) -> None:
    """A wrong item has no position that could be bound."""
    device = await cloud.device()
    wrong = event(5, id="zz")
    del wrong["seq"]
    reply = await device.push([wrong, event(7)], query="?unsequenced=1")
    assert statuses(reply["results"]) == ["rejected", "stored"]
    assert reply["acked_through"] == 0
    assert (await device.push([event(5)]))["acked_through"] == 5


@pytest.mark.only_sqlite
async def test_change_numbers_have_no_holes(cloud: CloudUnderTest) -> None:
    """Every number up to the counter is covered by exactly one transaction, refused batches included."""
    device = await cloud.device()
    await device.push(events(3))
    await device.try_push([event(1), event(2)])
    await device.put({"type": "session", "id": "a", "fields": {}})
    await device.push(events(2, first=4), base_seq=3)
    with sqlite3.connect(cloud.tenant_files()[0]) as db:
        spans = db.execute("SELECT first, last FROM change_log ORDER BY first").fetchall()
        head = db.execute("SELECT change FROM counter").fetchone()[0]
    db.close()
    assert [number for first, last in spans for number in range(first, last + 1)] == list(range(1, head + 1))
    assert head == 6


async def test_a_device_that_was_copied_is_told_from_a_replay(cloud: CloudUnderTest) -> None:
    """Two installations under one identity: the one that comes second is refused and loses nothing."""
    device = await cloud.device()
    await device.push(events(2))
    clone = Device(cloud, device.enrolled)
    await device.push(events(1, first=3), base_seq=2)
    assert problem(await clone.try_push(events(1, first=3), base_seq=2)) == (409, "stream_fork")
