"""The feed: order, paging, whose items it shows, and cursors that know their history."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.cloud import paging
from metricsd.cloud.wiretext import event_id_text, event_key, parse_revision, revision_text
from tests.cloud.support import CloudUnderTest, Device, Json, event, events, problem, statuses

PAGE = 5


def record(number: int) -> Json:
    return {"type": "session", "id": f"s{number}", "fields": {"n": number}}


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE + 1])
async def test_paging_shows_every_item_once_in_order(cloud: CloudUnderTest, count: int) -> None:
    """At every page boundary; events and records share one order."""
    device, other = await cloud.device(), await cloud.device()
    expected, last_seq = [], 0
    for number in range(1, count + 1):
        if number % 3:
            await device.push([made := event(number)], base_seq=last_seq)
            last_seq = number
            expected.append(made["id"])
        else:
            await device.put(record(number))
            expected.append(f"s{number}")
    items = await other.feed(limit=PAGE)
    assert [item["event"]["id"] if "event" in item else item["record"]["id"] for item in items] == expected


async def test_a_page_that_holds_all_says_so(cloud: CloudUnderTest) -> None:
    """`more` is false when nothing is left, and the next page is empty with the same cursor."""
    device, other = await cloud.device(), await cloud.device()
    await device.push(events(PAGE))
    page = await other.changes(limit=PAGE)
    assert (len(page["items"]), page["more"]) == (PAGE, False)
    after = await other.changes(page["cursor"], PAGE)
    assert (after["items"], after["more"], after["cursor"]) == ([], False, page["cursor"])


async def test_the_cursor_passes_over_the_devices_own_items(cloud: CloudUnderTest) -> None:
    """A device never gets its own items back, and does not look at them twice."""
    device, other = await cloud.device(), await cloud.device()
    await other.push(events(2))
    await device.push(events(7))
    page = await device.changes(limit=PAGE)
    assert [item["device"] for item in page["items"]] == [other.id] * 2
    number = parse_revision(page["cursor"])
    assert number is not None and number[0] == 9
    assert page["more"] is False


async def test_rows_looked_at_are_bounded(cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may be empty and still say `more`, so that no request scans a whole history."""
    monkeypatch.setattr(paging, "ROWS_LOOKED_AT_MAX", 3)
    device, other = await cloud.device(), await cloud.device()
    await device.push(events(7))
    await other.push(events(1))
    page = await device.changes()
    assert (page["items"], page["more"]) == ([], True)
    assert len(await device.feed()) == 1
    assert len(await other.feed()) == 7


async def test_bytes_of_a_page_are_bounded(cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large records come in more pages, none is left out."""
    monkeypatch.setattr(paging, "PAGE_BYTES_MAX", 2500)
    device, other = await cloud.device(), await cloud.device()
    await device.put(*[{**record(number), "fields": {"text": "x" * 1000}} for number in range(8)])
    page = await other.changes()
    assert (len(page["items"]), page["more"]) == (3, True)
    assert len(await other.feed()) == 8


async def test_only_records_leaves_events_out(cloud: CloudUnderTest) -> None:
    """The cursor passes over them, so that switching back to all shows newer ones only."""
    device, other = await cloud.device(), await cloud.device()
    await device.push(events(3))
    await device.put(record(1))
    page = await other.changes(only="records")
    assert [item["record"]["id"] for item in page["items"]] == ["s1"]
    assert (await other.changes(page["cursor"]))["items"] == []


async def test_a_record_appears_once_with_its_newest_version(cloud: CloudUnderTest) -> None:
    """And moves behind the cursor when it changes again."""
    device, other = await cloud.device(), await cloud.device()
    [made] = await device.put(record(1))
    first = await other.changes()
    await device.put({**record(1), "base_rev": made["rev"], "fields": {"n": 2}})
    second = await other.changes(first["cursor"])
    assert [item["record"]["fields"] for item in second["items"]] == [{"n": 2}]
    assert len(await other.feed()) == 1


async def test_own_records_come_back(cloud: CloudUnderTest) -> None:
    """A device that was restored from an older copy gets what it wrote since; own events and counters it has."""
    device, other = await cloud.device(), await cloud.device()
    [made] = await device.put(record(1))
    assert [item["record"]["rev"] for item in await device.feed()] == [made["rev"]]
    await other.put({**record(1), "base_rev": made["rev"], "fields": {"n": 2}})
    assert len(await device.feed()) == len(await other.feed()) == 1


async def test_a_device_that_asks_for_all_gets_its_own_events_too(cloud: CloudUnderTest) -> None:
    """To compare what it sent with what is there; what another user has stays unseen."""
    device, other, stranger = await cloud.device(), await cloud.device(), await cloud.device(user="bob")
    own, others = events(3), event(9)
    await device.push(own)
    await other.push([others])
    await stranger.push([event(11)])
    await device.put(record(1))
    seen: list[str] = []
    cursor, more = "", True
    while more:
        page = (await cloud.get(f"/changes?cursor={cursor}&limit=2&own=1", device.token)).json()
        seen += [item["event"]["id"] if "event" in item else item["record"]["id"] for item in page["items"]]
        cursor, more = page["cursor"], page["more"]
    assert seen == [*(one["id"] for one in own), others["id"], "s1"]


async def test_the_limit_is_clamped_and_checked(cloud: CloudUnderTest) -> None:
    """A page is never longer than `page_max`; nonsense is 400."""
    device = await cloud.device()
    assert (await device.try_changes(limit=10**9)).status_code == 200
    for query in ("limit=0", "limit=-1", "limit=x", "limit=1e3", "only=events", "own=0"):
        assert (await cloud.get(f"/changes?{query}", device.token)).status_code == 400


@pytest.mark.parametrize(
    "cursor", ["x", "5", "5-", "0-0000000000000000", "1-ffffffffffffffff", "9" * 19 + "-" + "0" * 16, "1-0%00"]
)
async def test_a_cursor_of_no_history_is_gone(cloud: CloudUnderTest, cursor: str) -> None:
    """410, so that the device starts again; hello says the same."""
    device = await cloud.device()
    await device.push(events(3))
    assert problem(await device.try_changes(cursor)) == (410, "history_changed")
    assert (await device.hello(cursor=cursor))["cursor_ok"] is False


async def test_a_restored_cloud_is_told_from_the_one_that_went_on(tmp_path: Path) -> None:
    """Old cursors stay good, newer ones are gone, even when the numbers have been given out again."""
    async with CloudUnderTest(tmp_path / "cloud") as cloud:
        device, other = await cloud.device(), await cloud.device()
        await device.push(events(3))
        [made] = await device.put(record(1))
        old = (await other.changes())["cursor"]
    shutil.copytree(tmp_path / "cloud", tmp_path / "copy")
    async with CloudUnderTest(tmp_path / "cloud") as cloud:
        await device.on(cloud).push(lost := events(2, first=4), base_seq=3)
        [updated] = await device.on(cloud).put({**record(1), "base_rev": made["rev"], "fields": {"n": 2}})
        newer = (await other.on(cloud).changes())["cursor"]
    async with CloudUnderTest(tmp_path / "copy") as cloud:
        device, other = device.on(cloud), other.on(cloud)
        assert problem(await other.try_changes(newer)) == (410, "history_changed")
        await _go_on_differently(device, other)
        assert problem(await other.try_changes(newer)) == (410, "history_changed")
        assert (await other.hello(cursor=newer))["cursor_ok"] is False
        assert (await other.try_changes(old)).status_code == 200
        told = await device.hello(acked_seq=5, acked_id=lost[1]["id"])
        assert told["last_seq"] == 3 and "id_at_acked" not in told
        assert statuses((await device.push(lost, base_seq=3))["results"]) == ["stored"] * 2
        [result] = await device.put({**record(1), "base_rev": updated["rev"], "fields": {"n": 3}})
        assert result["status"] == "conflict"


async def _go_on_differently(device: Device, other: Device) -> None:
    """Use up the numbers that the lost part of the history had."""
    for number in range(10, 16):
        await device.put(record(number))


async def test_a_puller_beside_many_writers_misses_nothing(cloud: CloudUnderTest) -> None:
    """A change never becomes visible behind a cursor that was handed out: every reader sees every item."""
    devices = [await cloud.device() for _ in range(4)]
    reader = await cloud.device()
    done = asyncio.Event()

    async def write(device: Device) -> None:
        for number in range(15):
            await device.push(events(3, first=number * 3 + 1), base_seq=number * 3)

    async def pull() -> list[str]:
        seen: list[str] = []
        cursor = ""
        while True:
            finished = done.is_set()
            page = await reader.changes(cursor, limit=7)
            seen += [item["event"]["id"] for item in page["items"]]
            cursor = page["cursor"]
            if finished and not page["more"]:
                return seen

    async with cloud.another() as second_process:
        pulling = asyncio.create_task(pull())
        await asyncio.gather(
            *[write(device.on(second_process) if index % 2 else device) for index, device in enumerate(devices)]
        )
        done.set()
        seen = await pulling
    assert len(seen) == len(set(seen)) == 4 * 15 * 3


@given(st.integers(1, (1 << 63) - 1), st.integers(0, (1 << 63) - 1))
def test_revisions_survive_their_text(change: int, nonce: int) -> None:
    """parse(text(x)) == x, for every number that can be stored."""
    assert parse_revision(revision_text(change, nonce)) == (change, nonce)


@given(st.text(max_size=40))
def test_any_text_is_a_revision_or_is_not(text: str) -> None:
    """Parsing is total, and what it accepts is written in one way only."""
    found = parse_revision(text)
    assert found is None or found[0] > 0


@given(st.text(max_size=40), st.text(max_size=40))
def test_malformed_ids_are_bound_apart_from_real_ones(first: str, second: str) -> None:
    """Different texts have different keys, and a device recognises its own."""
    assert event_id_text(event_key(first), first) in (first, first.lower())
    if first.lower() != second.lower():
        assert event_key(first) != event_key(second)
