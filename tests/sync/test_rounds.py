"""Rounds against the real cloud app: what one device sends, another sees, whatever the network does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TypeVar

import httpx
import msgspec
import pytest

from metricsd.config import Sync
from metricsd.hlc import Stamp
from metricsd.protocol import PREFIX, EventResult, PushEventsReply, PushRecordsReply, RecordResult
from metricsd.store import conflict_log, outbox, records, state
from metricsd.sync.engine import LAST_ERROR, LAST_SUCCESS, NEXT, Engine
from metricsd.sync.round import Run
from tests.sync.world import SETTINGS, Device, World

T = TypeVar("T")

DAY_S = 86400.0


def assert_everywhere_once(world: World, *devices: Device, expected: int) -> None:
    """Every event is in the cloud and on each device once, and counters and totals say the same."""
    cloud = world.event_ids()
    assert len(cloud) == expected and set(cloud.values()) <= {1}
    assert world.counted() == expected
    for device in devices:
        assert device.event_ids() == cloud
        assert (device.counted(), device.rolled_up()) == (expected, expected)


async def settle(*devices: Device, rounds: int = 2) -> None:
    """Run rounds on a network without faults until everybody had the chance to see everything."""
    for _ in range(rounds):
        for device in devices:
            report = await device.sync()
            assert report.ok, report.error


async def test_what_one_device_records_the_cloud_and_another_device_have(world: World) -> None:
    """Events, counters and totals arrive once; a second round has nothing to do."""
    one, two = await world.device("one"), await world.device("two")
    one.record(130)

    first, second = await one.sync(), await two.sync()

    assert (first.ok, first.error, first.pushed_events) == (True, None, 130)
    assert (second.ok, second.pulled_events) == (True, 130)
    assert_everywhere_once(world, one, two, expected=130)
    again = await one.sync()
    assert (again.ok, again.pushed_events, again.pushed_records, again.pulled_events) == (True, 0, 0, 0)
    assert outbox.pending_events(one.store) == 0


async def test_events_recorded_before_the_first_login_are_sent_after_it(world: World) -> None:
    """A store that lived without a cloud becomes a device with everything that it holds."""
    one = world.unborn("one")
    one.record(3)
    assert (await one.sync()).error is not None
    born = await world.device("one")
    await one.close()
    report = await born.sync()
    assert (report.ok, report.pushed_events) == (True, 3)
    assert_everywhere_once(world, born, expected=3)


async def test_a_month_offline_arrives_in_batches_and_the_cursor_never_goes_back(world: World) -> None:
    """Thirty days without a network lose nothing; the backlog goes in growing batches."""
    one, two = await world.device("one"), await world.device("two")
    await settle(one, two)
    await world.stop()
    for day in range(30):
        one.record(40, session=f"one-{day}")
        two.record(25, session=f"two-{day}")
        assert (await one.sync()).ok is False
        world.clock.advance(DAY_S)
    await world.start()
    world.network.requests.clear()

    cursors = []
    for device in (one, two, one):
        assert (await device.sync()).ok
        cursors.append(int(str(state.get(one.store, outbox.CURSOR, "0-")).partition("-")[0] or 0))

    pushes = world.network.requests.count(f"POST {PREFIX}/events")
    assert 8 <= pushes <= 16, pushes
    assert cursors == sorted(cursors)
    assert_everywhere_once(world, one, two, expected=30 * 65)


@pytest.mark.parametrize("fault", ["before", "after", "twice", "html", "429", "500", "503"])
async def test_each_fault_at_each_request_loses_and_doubles_nothing(world: World, fault: str) -> None:
    """Whatever request of a round fails in whatever way, rounds without faults bring everything to its place."""
    one, two = await world.device("one"), await world.device("two")
    expected = 0
    for hit in range(7):
        expected += len(one.record(70, session=f"one-{hit}")) + len(two.record(20, session=f"two-{hit}"))
        seen = 0

        def once(request: httpx.Request, hit: int = hit) -> str | None:
            nonlocal seen
            seen += 1
            return fault if seen == hit + 1 else None

        world.network.fault = once
        report = await one.sync()
        assert report.ok or report.error is not None
        world.network.fault = lambda _: None
    await settle(one, two)
    assert_everywhere_once(world, one, two, expected=expected)


@pytest.mark.parametrize("seed", range(6))
async def test_a_network_that_fails_at_random_loses_and_doubles_nothing(world: World, seed: int) -> None:
    """Three devices, a third of all requests failing, stores reopened in between: in the end all agree."""
    rng = Random(seed)
    devices = [await world.device(name) for name in ("one", "two", "three")]
    expected = 0

    def flaky(_: httpx.Request) -> str | None:
        return rng.choice(["before", "after", "twice", "429", "500"]) if rng.random() < 0.35 else None

    for step in range(25):
        world.network.fault = flaky
        device = rng.choice(devices)
        expected += len(
            device.record(rng.randrange(60), session=f"s{rng.randrange(4)}", tag=f"{device.root.name}{step}")
        )
        await device.sync()
        if rng.random() < 0.2:
            await device.close()
            device.open()
    world.network.fault = lambda _: None
    await settle(*devices, rounds=3)
    assert_everywhere_once(world, *devices, expected=expected)


async def test_a_cloud_restored_from_an_older_copy_gets_back_what_it_lost(world: World) -> None:
    """Events, counters and records that the copy does not have are offered again, the feed is listed again."""
    one, two = await world.device("one"), await world.device("two")
    one.record(20)
    with one.store.transaction():
        records.edit(one.store, "session", "s-1", {"description": "old"})
    await settle(one, two)
    copy = await world.backup()
    one.record(30)
    two.record(10)
    with one.store.transaction():
        records.edit(one.store, "session", "s-1", {"description": "new"})
        records.edit(one.store, "session", "s-2", {"score": 5})
    await settle(one, two)
    await world.restore(copy)
    assert sum(world.event_ids().values()) == 20

    one.record(1)
    await settle(one, two, rounds=3)

    assert_everywhere_once(world, one, two, expected=61)
    for device in (one, two):
        found = [records.get(device.store, "session", name) for name in ("s-1", "s-2")]
        assert [record.version.fields for record in found if record] == [{"description": "new"}, {"score": 5}]
        assert conflict_log.count_open(device.store) == 0


async def test_a_device_restored_from_an_older_copy_becomes_a_new_device_and_gets_its_events_back(world: World) -> None:
    """What the copy lacks comes back from the cloud, what it has unsent is sent; the old id stays its parent."""
    one, two = await world.device("one"), await world.device("two")
    one.record(20)
    await settle(one, two)
    one.record(15, tag="unsent-in-the-copy")
    copy = await one.backup()
    one.record(10, tag="after-the-copy")
    await settle(one, two)
    await one.restore(copy)
    old = outbox.find(one.store)
    one.record(5, tag="after-the-restore")

    await settle(one, two)

    new = outbox.find(one.store)
    assert old is not None and new is not None and new.device_id != old.device_id
    assert_everywhere_once(world, one, two, expected=50)


async def test_a_restored_device_that_only_lost_acknowledgements_stays_itself(world: World) -> None:
    """A copy that has all events but an older mark adopts the cloud's: no new device id is made."""
    one = await world.device("one")
    one.record(20)
    copy = await one.backup()
    await settle(one)
    await one.restore(copy)
    before = outbox.find(one.store)
    await settle(one)
    after = outbox.find(one.store)
    credentials = await one.engine.dry_run()
    assert after is not None and after.acked_seq == 20 and (before is None or before.device_id == after.device_id)
    assert credentials.pending_events == 0
    assert_everywhere_once(world, one, expected=20)


async def test_a_copied_home_forks_and_nothing_is_lost_or_doubled(world: World) -> None:
    """Two installations with one identity: both keep recording, one becomes a new device, all agree in the end."""
    one, two = await world.device("one"), await world.device("two")
    one.record(20)
    await settle(one, two)
    one.record(10, tag="unsent-when-copied", session="s-2")
    clone = world.unborn("clone")
    copy = await one.backup()
    await clone.restore(copy)
    for turn in range(3):
        one.record(7, tag=f"one-after{turn}", session="s-2")
        clone.record(9, tag=f"clone-after{turn}", session="s-2")
        assert (await one.sync()).ok
        assert (await clone.sync()).ok

    await settle(one, clone, two)

    ids = {stream.device_id for device in (one, clone) if (stream := outbox.find(device.store))}
    assert len(ids) == 2
    assert_everywhere_once(world, one, two, clone, expected=20 + 10 + 21 + 27)


async def test_the_same_fact_on_two_devices_counts_once(world: World) -> None:
    """Both devices read the same shared folder; the cloud has each event once and so do all counters."""
    one, two = await world.device("one"), await world.device("two")
    one.record(30, tag="shared")
    two.record(30, tag="shared")
    two.record(5, tag="own", session="s-9")
    await settle(one, two, rounds=3)
    assert_everywhere_once(world, one, two, expected=35)


async def test_logging_in_again_to_the_same_cloud_sends_nothing_twice(world: World) -> None:
    """A second login brings a new device id; what the old one sent stays the old one's."""
    one, two = await world.device("one"), await world.device("two")
    one.record(20)
    await settle(one, two)
    one.record(5)
    await one.close()
    again = await world.device("one")
    await settle(again, two)
    assert_everywhere_once(world, again, two, expected=25)


async def test_another_cloud_gets_everything(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """After a login elsewhere all own events are offered there, and the first cloud keeps what it had."""
    one = await world.device("one")
    one.record(20)
    with one.store.transaction():
        records.edit(one.store, "session", "s-1", {"tags": ["a"]})
    await settle(one)
    await one.close()
    other = World(tmp_path_factory.mktemp("other"), world.clock)
    other.root.joinpath("one").symlink_to(one.root)
    await other.start()
    moved = await other.device("one")
    moved.record(1)
    await settle(moved)
    assert_everywhere_once(other, moved, expected=21)
    assert sum(world.event_ids().values()) == 20
    assert (await other.device("two")).root != moved.root
    await other.close()


@pytest.mark.parametrize("pull", ["all", "records", "none"])
async def test_pull_setting_decides_what_is_fetched(world: World, pull: str) -> None:
    """`all` fetches events and records, `records` no events, `none` nothing."""
    one, two = await world.device("one"), await world.device("two", settings=SETTINGS._replace(pull=pull))
    one.record(10)
    with one.store.transaction():
        records.edit(one.store, "session", "s-1", {"score": 3})
    await settle(one, two)
    assert len(two.event_ids()) == (10 if pull == "all" else 0)
    assert (records.get(two.store, "session", "s-1") is None) == (pull == "none")


async def test_widening_pull_from_records_to_all_fetches_the_events_left_out(world: World) -> None:
    """Events that a `records` pull passed over come once the setting is `all`."""
    one, two = await world.device("one"), await world.device("two", settings=SETTINGS._replace(pull="records"))
    one.record(10)
    await settle(one, two)
    two.settings = SETTINGS
    await two.close()
    two.open()
    await settle(two)
    assert_everywhere_once(world, one, two, expected=10)


@pytest.mark.parametrize(("direction", "calls"), [("local_first", ["events"]), ("remote_first", ["changes", "events"])])
async def test_direction_decides_the_order(world: World, direction: str, calls: list[str]) -> None:
    """`local_first` only pushes; `remote_first` fetches before it pushes."""
    one = await world.device("one", settings=SETTINGS._replace(direction=direction))
    one.record(1)
    world.network.requests.clear()
    await settle(one, rounds=1)
    order = [path.rpartition("/")[2] for path in world.network.requests]
    assert [name for name in order if name in ("changes", "events")] == calls


async def test_a_bad_item_goes_to_quarantine_and_the_stream_goes_on(world: World) -> None:
    """A batch that the cloud refuses as a whole is halved until the bad one is alone."""
    one = await world.device("one")
    ids = one.record(60)
    bad = ids[41].hex()

    def refuse(request: httpx.Request) -> str | None:
        return "422" if request.url.path.endswith("/events") and bad.encode() in _plain(request) else None

    answers = {"422": httpx.Response(422, headers={"content-type": "application/problem+json"}, json={
        "status": 422, "title": "no", "code": "bad_item"})}  # fmt: skip
    world.network.fault = refuse
    world.network.canned = answers
    report = await one.sync()
    assert report.ok, report.error
    assert [(item.id, item.reason) for item in report.rejected] == [(bad, "bad_item")]
    assert report.pushed_events == 59
    assert one.store.db.execute("SELECT reason FROM quarantine").fetchall() == [("cloud_refused",)]
    one.record(5)
    again = await one.sync()
    assert (again.ok, again.pushed_events, again.rejected) == (True, 5, [])
    assert Counter(ids)[bytes.fromhex(bad)] == 1 and outbox.pending_events(one.store) == 0


async def test_a_part_of_a_batch_can_be_settled(world: World) -> None:
    """The mark goes to the last event that the cloud settled, and the next batch begins behind it."""
    one = await world.device("one")
    one.record(50)
    results = [EventResult(status="stored")] * 50
    partial = msgspec.json.encode(PushEventsReply(results=results, acked_through=20, server_time=0))
    world.network.canned["partial"] = httpx.Response(200, headers={"content-type": "application/json"}, content=partial)
    bases: list[int] = []

    def fault(request: httpx.Request) -> str | None:
        if not request.url.path.endswith("/events"):
            return None
        bases.append(msgspec.json.decode(_plain(request))["base_seq"])
        return "partial" if len(bases) == 1 else "before"

    world.network.fault = fault
    report = await one.sync()
    stream = outbox.find(one.store)
    assert stream is not None and (stream.acked_seq, bases, report.pushed_events) == (20, [0, 20], 20)
    world.network.fault = lambda _: None
    await settle(one)
    assert_everywhere_once(world, one, expected=50)


@pytest.mark.parametrize("reply", [b"{}", b'{"results":[],"acked_through":50,"server_time":0}', b"[]", b"null"])
async def test_an_answer_that_does_not_fit_settles_nothing(world: World, reply: bytes) -> None:
    """Whatever a broken server says, what waits goes on waiting."""
    one = await world.device("one")
    one.record(50)
    world.network.canned["odd"] = httpx.Response(200, headers={"content-type": "application/json"}, content=reply)
    world.network.fault = lambda request: "odd" if request.url.path.endswith("/events") else None
    report = await one.sync()
    assert report.error is not None and report.error.code == "unreachable"
    assert outbox.pending_events(one.store) == 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"last_seq": -1},
        {"last_seq": 2**70},
        {"last_id": "x"},
        {"last_id": "a" * 1000},
        {"server_time": -5},
        {"server_time": 2**70},
        {"epoch": "one"},
    ],
)
async def test_a_hello_that_cannot_be_changes_nothing(world: World, wrong: dict[str, object]) -> None:
    """The stream stays where it is, and the report says that nobody is there who speaks our protocol."""
    one = await world.device("one")
    one.record(5)
    await settle(one)
    before = outbox.find(one.store)
    said = {"server_time": world.clock.now_us(), "epoch": 1, "last_seq": 5, "last_id": "", "cursor_ok": True} | wrong
    answer = httpx.Response(200, headers={"content-type": "application/json"}, content=msgspec.json.encode(said))
    world.network.canned["odd"] = answer
    world.network.fault = lambda request: "odd" if request.url.path.endswith("/hello") else None
    report = await one.sync()
    assert report.error is not None and report.error.code == "unreachable"
    assert outbox.find(one.store) == before


class Crash(Exception):
    """The process died here."""


def crashing(at: int, *, after: bool) -> Run:
    """Return an executor that dies at its n-th call, before or after doing it."""
    calls = 0

    class Crashing:
        async def __call__(self, fn: Callable[..., T], /, *args: object) -> T:
            nonlocal calls
            calls += 1
            if calls == at and not after:
                raise Crash
            result = fn(*args)
            if calls == at:
                raise Crash
            return result

    return Crashing()


async def die_in_a_round(device: Device, at: int, *, after: bool) -> bool:
    """Run a round that dies at the n-th access to the store, and start again; return whether it came that far."""
    engine = Engine(
        device.paths, device.store, device.settings,
        clock=device.clock, run=crashing(at, after=after), connect=device.world.connect,
    )  # fmt: skip
    try:
        await engine.tick()
    except Crash:
        return True
    finally:
        await engine.close()
        await device.close()
        device.open()
    return False


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_point_of_a_round_loses_and_doubles_nothing(world: World, after: bool) -> None:
    """Each access to the store is once the last thing that the process did."""
    one, two = await world.device("one"), await world.device("two")
    expected, at, dying = 0, 0, True
    while dying:
        at += 1
        for device in (one, two):
            expected += len(device.record(60, session=f"s{at}"))
            with device.store.transaction():
                records.edit(device.store, "session", device.root.name, {"score": at})
        await two.sync()
        dying = await die_in_a_round(one, at, after=after)
    assert at > 10
    await settle(one, two)
    assert_everywhere_once(world, one, two, expected=expected)
    assert (conflict_log.count_open(one.store), conflict_log.count_open(two.store)) == (0, 0)


@pytest.mark.parametrize("at", range(1, 16, 2))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_while_forking_loses_and_doubles_nothing(world: World, at: int, after: bool) -> None:
    """Between the new login's files and the store's new stream lies no moment that cannot be healed."""
    one, clone = await world.device("one"), world.unborn("clone")
    one.record(20)
    await settle(one)
    one.record(10, tag="unsent-when-copied")
    await clone.restore(await one.backup())
    one.record(5, tag="one-after")
    clone.record(7, tag="clone-after")
    await settle(one)
    await die_in_a_round(clone, at, after=after)
    await settle(clone, one)
    assert_everywhere_once(world, one, clone, expected=42)


def _plain(request: httpx.Request) -> bytes:
    import zstandard

    body = request.content
    if request.headers.get("content-encoding") == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return body


async def test_outcome_and_next_attempt_are_kept_for_status(world: World) -> None:
    """A failure leaves its code, its sentence and a later attempt; a success clears it."""
    one = await world.device("one", settings=Sync(backoff_max_s=60.0))
    world.network.fault = lambda _: "before"
    report = await one.sync()
    assert report.error is not None and report.error.code == "unreachable"
    error = str(state.get(one.store, LAST_ERROR))
    assert '"code":"unreachable"' in error and "refused" in error
    planned = state.get_int(one.store, NEXT)
    assert 0 <= planned - world.clock.now_us() <= 60_000_000
    world.network.fault = lambda _: None
    assert (await one.sync()).ok
    assert state.get(one.store, LAST_ERROR) is None
    assert state.get_int(one.store, LAST_SUCCESS) == world.clock.now_us()
    assert 0 < await one.engine.seconds_to_next() <= 300


async def test_retry_after_is_honoured(world: World) -> None:
    """A busy cloud's Retry-After is a lower bound of the pause."""
    one = await world.device("one")
    world.network.fault = lambda _: "429"
    report = await one.sync()
    assert report.error is not None and report.error.code == "busy"
    assert await one.engine.seconds_to_next() >= 7


async def test_a_wrong_token_says_to_log_in(world: World) -> None:
    """A token that the cloud does not know gives one sentence and the login's exit code; nothing is lost."""
    one = await world.device("one")
    one.record(2)
    text = one.paths.credentials.read_text()
    token = text.partition('"token": "')[2].partition('"')[0]
    one.paths.credentials.write_text(text.replace(token, token[:-4] + "AAAA"))
    report = await one.sync()
    assert report.error is not None and report.exit_code == 5
    assert "metricsd login" in report.error.message
    assert outbox.pending_events(one.store) == 2


async def test_a_clock_ten_years_ahead_is_said_and_loses_nothing(world: World) -> None:
    """Events of a wrong year are facts and are sent; edits are re-based so that they do not win for ever."""
    from tests.fakes import FakeClock

    wrong = FakeClock(world.clock.now_us() + 10 * 366 * 86400 * 1_000_000)
    one, two = await world.device("one", clock=wrong), await world.device("two")
    one.record(4)
    with one.store.transaction():
        records.edit(one.store, "session", "s-1", {"score": 1})
    report = await one.sync()
    assert report.ok, report.error
    assert [note for note in report.notes if "10 years ahead" in note] == report.notes != []
    await settle(two)
    with two.store.transaction():
        records.edit(two.store, "session", "s-1", {"score": 2})
    await settle(two, one)
    found = records.get(one.store, "session", "s-1")
    assert found is not None and found.version.fields == {"score": 2}
    assert_everywhere_once(world, one, two, expected=4)


async def test_stamps_that_the_cloud_finds_too_late_are_rebased_and_the_edit_is_kept(world: World) -> None:
    """The answer `restamp` names the highest stamp allowed; the record goes again below it, in the same round."""
    one, two = await world.device("one"), await world.device("two")
    with one.store.transaction():
        edited = records.edit(one.store, "session", "s-1", {"score": 4})
    allowed = Stamp(world.clock.now_us() // 1000 - 60_000, 0, "server")
    reply = PushRecordsReply(results=[RecordResult(status="restamp", stamp=allowed.text())], server_time=0)
    world.network.canned["restamp"] = httpx.Response(
        200, headers={"content-type": "application/json"}, content=msgspec.json.encode(reply)
    )
    pushes = 0

    def fault(request: httpx.Request) -> str | None:
        nonlocal pushes
        pushes += request.url.path.endswith("/records")
        return "restamp" if pushes == 1 and request.url.path.endswith("/records") else None

    world.network.fault = fault
    report = await one.sync()
    assert (report.ok, report.pushed_records, pushes) == (True, 1, 2)
    await settle(two)
    found = records.get(two.store, "session", "s-1")
    assert found is not None and found.version.fields == {"score": 4}
    assert found.version.stamps["score"] < allowed.text() < edited.stamps["score"]


async def test_a_conflict_found_while_pushing_is_resolved_and_pushed_in_the_same_round(world: World) -> None:
    """A device that never pulls learns of the other version from the compare-and-set; the log keeps both."""
    one, two = await world.device("one"), await world.device("two", settings=SETTINGS._replace(direction="local_first"))
    for device, score in ((one, 1), (two, 2)):
        with device.store.transaction():
            records.edit(device.store, "session", "s-1", {"score": score})
    await settle(one, rounds=1)
    report = await two.sync()
    assert (report.ok, report.conflicts.open, report.pushed_records) == (True, 0, 1)
    assert (report.conflicts.resolved, report.conflicts.by_strategy) == (1, {"merge_fields": 1})
    again = await two.sync()
    assert (again.ok, again.conflicts.resolved, again.pushed_records) == (True, 0, 0)
    (conflict,) = conflict_log.list_all(two.store)
    assert (conflict.base, conflict.local.fields, conflict.remote.fields) == (None, {"score": 2}, {"score": 1})


async def test_nothing_is_overwritten_without_a_log_row_that_has_both_versions(world: World) -> None:
    """Both edited since the base: the deciding device logs base, local, remote and result, and all then agree."""
    one, two = await world.device("one"), await world.device("two")
    with one.store.transaction():
        records.edit(one.store, "session", "s-1", {"description": "base", "score": 1})
    await settle(one, two)
    for device, text in ((one, "from one"), (two, "from two")):
        with device.store.transaction():
            records.edit(device.store, "session", "s-1", {"description": text})
    assert (await one.sync()).ok

    report = await two.sync()
    assert (report.ok, report.conflicts.open, report.conflicts.resolved) == (True, 0, 1)
    await settle(one, two)

    assert conflict_log.list_all(one.store) == []
    (conflict,) = conflict_log.list_all(two.store)
    versions = (conflict.base, conflict.local, conflict.remote)
    assert [version.fields["description"] for version in versions if version] == ["base", "from two", "from one"]
    assert conflict.result is not None
    for device in (one, two):
        found = records.get(device.store, "session", "s-1")
        assert found is not None and found.version.fields == conflict.result.fields | {"score": 1}
        assert found.version.fields["description"] in ("from one", "from two")


@pytest.mark.parametrize("pull", ["all", "records"])
async def test_a_lost_answer_that_named_another_owner_is_asked_for_again(world: World, pull: str) -> None:
    """What the cloud said of shared events got lost; their counters still count once, without their events too."""
    one = await world.device("one")
    two = await world.device("two", settings=SETTINGS._replace(pull=pull))
    one.record(30, tag="shared")
    assert (await one.sync()).ok
    two.record(30, tag="shared")
    two.record(5, tag="own", session="s-9")
    world.network.fault = lambda request: "after" if request.url.path.endswith("/events") else None
    await two.sync()
    world.network.fault = lambda _: None
    await settle(one, two, rounds=3)
    assert world.event_ids().total() == 35
    assert one.counted() == two.counted() == 35
