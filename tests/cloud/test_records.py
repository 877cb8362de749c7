"""Records: compare-and-set, conflicts that nobody decides here, stamps, tombstones, counters with one owner."""

from __future__ import annotations

from typing import Any

import pytest

from metricsd.cloud.comparing import STAMP_AHEAD_MS_MAX
from metricsd.hlc import Stamp, parse_stamp
from tests.cloud.support import CloudUnderTest, Json


def change(**fields: Any) -> Json:
    return {"type": "session", "id": "claude-code/s1", "fields": {}, **fields}


async def test_a_record_is_created_and_updated_on_its_base(cloud: CloudUnderTest) -> None:
    """Only changed fields travel; the others stay."""
    device, other = await cloud.device(), await cloud.device()
    [made] = await device.put(change(fields={"tags": ["a"], "score": 1.5}))
    [updated] = await device.put(change(base_rev=made["rev"], fields={"score": None}))
    assert made["status"] == updated["status"] == "applied"
    assert made["rev"] != updated["rev"]
    [item] = await other.feed()
    assert item["record"]["fields"] == {"tags": ["a"], "score": None}
    assert item["record"]["rev"] == updated["rev"]
    assert item["device"] == item["record"]["device"] == device.id


async def test_a_push_on_an_old_base_gets_the_current_version_and_changes_nothing(cloud: CloudUnderTest) -> None:
    """The cloud detects, the device resolves and pushes again on the version that it was given."""
    first, second = await cloud.device(), await cloud.device()
    [made] = await first.put(change(fields={"description": "old"}))
    [theirs] = await second.put(change(base_rev=made["rev"], fields={"description": "second"}))
    [mine] = await first.put(change(base_rev=made["rev"], fields={"description": "first"}))
    assert mine["status"] == "conflict"
    assert mine["current"]["rev"] == theirs["rev"]
    assert mine["current"]["fields"] == {"description": "second"}
    assert mine["current"]["device"] == second.id
    [resolved] = await first.put(change(base_rev=mine["current"]["rev"], fields={"description": "both"}))
    assert resolved["status"] == "applied"


async def test_creating_what_exists_is_a_conflict_with_an_absent_base(cloud: CloudUnderTest) -> None:
    """Two devices that make the same record both keep what they wrote."""
    first, second = await cloud.device(), await cloud.device()
    await first.put(change(fields={"tags": ["a"]}))
    [result] = await second.put(change(fields={"tags": ["b"]}))
    assert result["status"] == "conflict"
    assert result["current"]["fields"] == {"tags": ["a"]}


async def test_a_lost_answer_is_given_again(cloud: CloudUnderTest) -> None:
    """The identical push of the last writer is applied with the current revision, and makes no new change."""
    device, other = await cloud.device(), await cloud.device()
    stamp = Stamp(cloud.clock.now_us() // 1000, 0, device.id).text()
    creation = change(fields={"tags": ["a"]}, stamps={"tags": stamp})
    [made] = await device.put(creation)
    assert await device.put(creation) == [made]
    update = change(base_rev=made["rev"], fields={"score": 2})
    [updated] = await device.put(update)
    assert await device.put(update) == [updated]
    deletion = change(base_rev=updated["rev"], deleted=True, stamp=stamp)
    [deleted] = await device.put(deletion)
    assert await device.put(deletion) == [deleted]
    assert len(await other.feed()) == 1


async def test_a_repeated_push_behind_anothers_change_is_a_conflict(cloud: CloudUnderTest) -> None:
    """Answering "applied" with the other's revision would hide the other's fields for ever."""
    first, second = await cloud.device(), await cloud.device()
    [made] = await first.put(change(fields={"tags": ["a"]}))
    update = change(base_rev=made["rev"], fields={"tags": ["b"]})
    [updated] = await first.put(update)
    await second.put(change(base_rev=updated["rev"], fields={"score": 9}))
    [again] = await first.put(update)
    assert again["status"] == "conflict"
    assert again["current"]["fields"] == {"tags": ["b"], "score": 9}


async def test_the_whole_record_offered_by_another_device_is_no_conflict(cloud: CloudUnderTest) -> None:
    """A device that enrolled anew after a fork offers its records again: what is equal is agreed on."""
    first, second = await cloud.device(), await cloud.device()
    [made] = await first.put(change(fields={"tags": ["a"]}))
    assert await second.put(change(fields={"tags": ["a"]})) == [made]


async def test_a_base_that_this_history_never_had_asks_for_the_whole_record(cloud: CloudUnderTest) -> None:
    """A cloud restored from an older copy takes back what it lost, and never a part of it: changed fields are not all."""
    device = await cloud.device()
    [lost] = await device.put(change(base_rev="99-00000000000000aa", fields={"tags": ["a"]}))
    assert lost == {"status": "conflict"}
    [result] = await device.put(change(fields={"tags": ["a"], "score": 1}))
    assert result["status"] == "applied"
    [result] = await device.put(change(base_rev="98-00000000000000aa", fields={"tags": ["b"]}))
    assert result["status"] == "conflict" and result["current"]["fields"] == {"tags": ["a"], "score": 1}


async def test_a_tombstone_keeps_the_fields_and_can_be_revived(cloud: CloudUnderTest) -> None:
    """A deletion is a change like any other: compared with its base, seen by others, undone by an edit."""
    device, other = await cloud.device(), await cloud.device()
    stamp = Stamp(cloud.clock.now_us() // 1000, 0, device.id).text()
    [made] = await device.put(change(fields={"tags": ["a"]}))
    [gone] = await device.put(change(base_rev=made["rev"], deleted=True, stamp=stamp))
    [item] = await other.feed()
    assert item["record"] == {
        "type": "session",
        "id": "claude-code/s1",
        "rev": gone["rev"],
        "device": device.id,
        "fields": {"tags": ["a"]},
        "deleted": True,
        "stamp": stamp,
    }
    [stale] = await other.put(change(base_rev=made["rev"], fields={"tags": ["b"]}))
    assert stale["status"] == "conflict" and stale["current"]["deleted"]
    await other.put(change(base_rev=gone["rev"], fields={"tags": ["b"]}))
    [item] = await device.feed()
    assert "deleted" not in item["record"] and "stamp" not in item["record"]


@pytest.mark.parametrize("where", ["stamps", "stamp"])
async def test_a_stamp_far_ahead_comes_back_with_the_highest_allowed(cloud: CloudUnderTest, where: str) -> None:
    """Five minutes ahead is the limit, exactly; the returned stamp is itself accepted."""
    device = await cloud.device()
    limit_ms = cloud.clock.now_us() // 1000 + STAMP_AHEAD_MS_MAX

    def stamped(ms: int) -> Json:
        text = Stamp(ms, 0, device.id).text()
        if where == "stamp":
            return change(id=str(ms), deleted=True, stamp=text)
        return change(id=str(ms), fields={"tags": ["a"]}, stamps={"tags": text})

    results = await device.put(stamped(limit_ms - 1), stamped(limit_ms), stamped(limit_ms + 1))
    assert [result["status"] for result in results] == ["applied", "applied", "restamp"]
    assert parse_stamp(results[2]["stamp"]) == Stamp(limit_ms, 0, device.id)


async def test_counters_belong_to_their_device_and_never_conflict(cloud: CloudUnderTest) -> None:
    """Only the device named in the id may write them; whatever base it names, its version wins."""
    device, other = await cloud.device(), await cloud.device()
    mine = {"type": "session_counters", "id": f"{device.id}/claude-code/s1"}
    [first] = await device.put({**mine, "fields": {"events": 1, "tool_calls": 1}})
    [second] = await device.put({**mine, "base_rev": "5-00000000000000aa", "fields": {"events": 2}})
    assert first["status"] == second["status"] == "applied" and first["rev"] != second["rev"]
    assert await device.put({**mine, "fields": {"events": 2}}) == [second]
    [foreign] = await other.put({**mine, "fields": {"events": 9}})
    assert foreign == {"status": "rejected", "reason": "not_owner"}
    [item] = await other.feed()
    assert item["record"]["fields"] == {"events": 2, "tool_calls": 1}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"type": "secrets"}, "unknown_type"),
        ({"type": 5}, "malformed"),
        ({"id": ""}, "bad_id"),
        ({"id": "é" * 257}, "bad_id"),
        ({"fields": {"a": 1 << 63}}, "bad_fields"),
        ({"fields": {"": 1}}, "bad_fields"),
        ({"fields": {str(n): n for n in range(65)}}, "bad_fields"),
        ({"fields": {"a": {"b": 1}}}, "malformed"),
        ({"fields": {}, "stamps": {"a": "0" * 12 + "-0000-d"}}, "bad_fields"),
        ({"fields": {"a": 1}, "stamps": {"a": "soon"}}, "bad_stamp"),
        ({"deleted": True, "stamp": "soon"}, "bad_stamp"),
    ],
)
async def test_one_wrong_record_is_rejected_alone(cloud: CloudUnderTest, wrong: Json, reason: str) -> None:
    """Its neighbours are applied."""
    device = await cloud.device()
    results = await device.put(change(id="a"), change(**wrong), change(id="b"))
    assert [result["status"] for result in results] == ["applied", "rejected", "applied"]
    assert results[1]["reason"] == reason


async def test_an_id_of_512_bytes_is_the_longest(cloud: CloudUnderTest) -> None:
    """Bytes of UTF-8 count, not characters."""
    device = await cloud.device()
    [result] = await device.put(change(id="é" * 256))
    assert result["status"] == "applied"


async def test_later_items_of_a_batch_see_the_earlier_ones(cloud: CloudUnderTest) -> None:
    """A batch is worked off in order."""
    device = await cloud.device()
    results = await device.put(change(fields={"a": 1}), change(fields={"a": 2}))
    assert [result["status"] for result in results] == ["applied", "conflict"]
