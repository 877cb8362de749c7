"""Conflicts in rounds against the real cloud app: who decides, what is logged, and that all then hold the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.config import Sync
from metricsd.hlc import COUNTER_MAX, Stamp, parse_stamp
from metricsd.protocol import FieldValue
from metricsd.store import conflict_log, hlc_mark, records, state, tool_metrics
from metricsd.store.connection import Store
from metricsd.store.records import Version
from tests.fakes import FakeClock
from tests.sync.test_rounds import die_in_a_round, settle
from tests.sync.world import SETTINGS, Device, World

S, ID = "session", "claude-code/s-1"
DAY_S = 86400.0
YEAR_S = 366 * DAY_S


def edit(device: Device, record_id: str = ID, *, delete: bool = False, **fields: FieldValue) -> Version:
    with device.store.transaction():
        return records.edit(device.store, S, record_id, fields, delete=delete)


def wire(device: Device, record_id: str = ID, kind: str = S) -> tuple[dict[str, FieldValue], bool, str | None] | None:
    """Return what a device holds of a record, in its wire form: present fields, deleted, revision."""
    found = records.get(device.store, kind, record_id)
    if found is None:
        return None
    version = found.version
    fields: dict[str, FieldValue] = {}
    if not version.deleted:
        fields = {name: value for name, value in version.fields.items() if value is not None}
    return fields, version.deleted, found.rev


def assert_agreed(*devices: Device) -> dict[str, FieldValue]:
    """All devices hold the same record, nothing waits and nothing is open; return its fields."""
    held = [wire(device) for device in devices]
    assert held[0] is not None and all(one == held[0] for one in held), held
    for device in devices:
        assert records.pending_count(device.store) == 0 and conflict_log.count_open(device.store) == 0
    return held[0][0]


def write_policy(device: Device, text: str) -> None:
    folder = device.paths.config_dir / "conflict_policies"
    folder.mkdir(exist_ok=True, mode=0o700)
    file = folder / "mine.toml"
    file.write_text(text)
    file.chmod(0o600)


async def both_edited(world: World, *, one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[Device, Device]:
    """Return two devices that agreed on a session and then both edited it; the first has pushed."""
    first, second = await world.device("one"), await world.device("two")
    edit(first, description="base", tags=["a", "b"], score=1)
    await settle(first, second)
    world.clock.advance(1)
    edit(first, **one)
    world.clock.advance(1)
    edit(second, **two)
    assert (await first.sync()).ok
    return first, second


async def test_changes_of_different_fields_are_both_kept(world: World) -> None:
    """Nobody loses anything when nobody touched the same field."""
    one, two = await both_edited(world, one={"description": "new"}, two={"score": 9})
    report = await two.sync()
    assert (report.conflicts.resolved, report.conflicts.by_strategy) == (1, {"merge_fields": 1})
    await settle(one, two)
    assert assert_agreed(one, two) == {"description": "new", "score": 9, "tags": ["a", "b"]}


async def test_a_clash_takes_the_later_text_and_the_union_of_tags(world: World) -> None:
    """By the policy that ships: text is decided by the hybrid clock, tags are joined three-way."""
    one, two = await both_edited(
        world, one={"description": "one", "tags": ["a", "b", "c"]}, two={"description": "two", "tags": ["b", "d"]}
    )
    await settle(two, one)
    found = assert_agreed(one, two)
    assert found["description"] == "two"
    assert isinstance(found["tags"], list) and sorted(found["tags"]) == ["b", "c", "d"]


async def test_the_log_says_what_was_decided_by_which_rule(world: World) -> None:
    """Base, local, remote, result, strategy, rule as file:line, and the policy's sha256; on the deciding device."""
    one, two = await both_edited(world, one={"description": "one"}, two={"description": "two"})
    await settle(two, one)
    assert conflict_log.list_all(one.store) == []
    (entry,) = conflict_log.list_all(two.store)
    assert entry.state == "resolved" and entry.strategy == "merge_fields"
    assert entry.base is not None and entry.result is not None
    said = [v.fields["description"] for v in (entry.base, entry.local, entry.remote, entry.result)]
    assert said == ["base", "two", "one", "two"]
    assert entry.rule is not None and "merge_fields.toml:" in entry.rule
    assert entry.policy is not None and len(entry.policy) == 64


@pytest.mark.parametrize(("strategy", "expected"), [("local_wins", "two"), ("remote_wins", "one")])
async def test_a_policy_of_the_user_decides_and_all_adopt_it(world: World, strategy: str, expected: str) -> None:
    """Decided once, at the compare-and-set; the other device takes it over without a conflict of its own."""
    one, two = await both_edited(world, one={"description": "one"}, two={"description": "two"})
    write_policy(two, f'version = 1\ndefault = "{strategy}"\n')
    report = await two.sync()
    assert report.conflicts.by_strategy == {strategy: 1}
    await settle(one, two)
    assert assert_agreed(one, two)["description"] == expected
    assert conflict_log.list_all(one.store) == []


async def test_a_changed_policy_is_in_force_at_the_next_round(world: World) -> None:
    """The engine is not restarted; a broken file leaves the last good one in force."""
    one, two = await both_edited(world, one={"description": "one"}, two={"description": "two"})
    write_policy(two, 'version = 1\ndefault = "remote_wins"\n')
    assert (await two.sync()).conflicts.by_strategy == {"remote_wins": 1}
    await settle(one)
    for text, strategy in (('version = 1\ndefault = "local_wins"\n', "local_wins"), ("broken", "local_wins")):
        write_policy(two, text)
        edit(one, description=f"one again {text}")
        edit(two, description=f"two again {text}")
        assert (await one.sync()).ok
        assert (await two.sync()).conflicts.by_strategy == {strategy: 1}
        await settle(one)
        assert str(assert_agreed(one, two)["description"]).startswith("two again")


@pytest.mark.parametrize("deleter", ["one", "two"])
async def test_deletion_wins_over_an_edit_whoever_was_first(world: World, deleter: str) -> None:
    """Deleted stays deleted on all devices; the edit that lost is in the log and can be restored."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base")
    await settle(one, two)
    edit(one, delete=deleter == "one", **({} if deleter == "one" else {"description": "edited"}))
    edit(two, delete=deleter == "two", **({} if deleter == "two" else {"description": "edited"}))
    await settle(one, two, rounds=3)
    assert wire(one) == wire(two)
    held = wire(one)
    assert held is not None and held[1] is True
    (entry,) = conflict_log.list_all(two.store)
    assert entry.strategy == "delete_wins"
    with two.store.transaction():
        records.restore(two.store, entry, entry.remote if deleter == "two" else entry.local)
    await settle(two, one)
    assert assert_agreed(one, two) == {"description": "edited"}


async def test_both_deleted_is_no_conflict_and_an_edit_afterwards_brings_it_back(world: World) -> None:
    """Two tombstones say the same; a later edit is a decision of a person who saw it deleted."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base", score=3)
    await settle(one, two)
    edit(one, delete=True)
    edit(two, delete=True)
    await settle(one, two)
    assert conflict_log.list_all(one.store) == conflict_log.list_all(two.store) == []
    assert wire(one) == wire(two)
    edit(two, description="back")
    await settle(two, one)
    assert assert_agreed(one, two) == {"description": "back", "score": 3}


@pytest.mark.parametrize("direction", ["bidirectional", "local_first"])
async def test_what_a_deletion_hid_does_not_come_back_on_one_side_only(world: World, direction: str) -> None:
    """The cloud's tombstone keeps fields that the deleter never saw; brought back, all devices hold the same."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base")
    await settle(one, two)
    await _turn(two, SETTINGS._replace(direction=direction))
    edit(one, session_type="never seen by the deleter")
    edit(two, delete=True)
    await settle(one, two)
    edit(two, score=5)
    await settle(two, one)
    assert assert_agreed(one, two).items() >= {"description": "base", "score": 5}.items()


async def test_a_deletion_can_be_restored_too(world: World) -> None:
    """Under edit_wins the deletion loses; restoring that side deletes everywhere."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base")
    await settle(one, two)
    edit(one, delete=True)
    edit(two, description="edited")
    write_policy(two, 'version = 1\n\n[delete]\npolicy = "edit_wins"\n')
    await settle(one, two, rounds=2)
    assert assert_agreed(one, two) == {"description": "edited"}
    (entry,) = conflict_log.list_all(two.store)
    with two.store.transaction():
        records.restore(two.store, entry, entry.remote)
    await settle(two, one)
    held = wire(one)
    assert held == wire(two) and held is not None and held[1] is True


@pytest.mark.parametrize("side", ["local", "remote", "base"])
async def test_each_side_can_be_restored_and_reaches_all_devices(world: World, side: str) -> None:
    """A restored version is an edit of now: it wins, and fields that it does not have are cleared."""
    one, two = await both_edited(
        world, one={"description": "one", "session_type": "review"}, two={"description": "two"}
    )
    await settle(two, one)
    (entry,) = conflict_log.list_all(two.store)
    wanted = {"local": entry.local, "remote": entry.remote, "base": entry.base}[side]
    assert wanted is not None
    with two.store.transaction():
        records.restore(two.store, entry, wanted)
    await settle(two, one)
    assert assert_agreed(one, two) == wanted.fields
    assert len(conflict_log.list_all(two.store)) == 1 and conflict_log.list_all(one.store) == []


async def test_two_devices_that_make_the_same_session_merge_it_without_a_base(world: World) -> None:
    """The same session id written on two machines before either had synced."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="one", tags=["a"])
    world.clock.advance(1)
    edit(two, tags=["b"], score=4)
    one.record(3, session="s-1")
    two.record(4, session="s-1")
    await settle(one, two)
    found = assert_agreed(one, two)
    assert (found["description"], found["score"]) == ("one", 4)
    assert isinstance(found["tags"], list) and sorted(found["tags"]) == ["a", "b"]
    assert one.counted() == two.counted() == 7
    (entry,) = conflict_log.list_all(two.store)
    assert entry.base is None


async def test_three_devices_that_all_edit_end_with_one_record(world: World) -> None:
    """A chain of compare-and-sets: each later one resolves against what the others agreed on."""
    devices = [await world.device(name) for name in ("one", "two", "three")]
    edit(devices[0], description="base", score=1)
    await settle(*devices)
    for number, device in enumerate(devices):
        world.clock.advance(1)
        edit(device, description=f"from {number}", tags=[f"t{number}"])
    await settle(*devices, rounds=3)
    found = assert_agreed(*devices)
    assert found["description"] == "from 2"
    assert isinstance(found["tags"], list) and sorted(found["tags"]) == ["t0", "t1", "t2"]


async def test_an_edit_made_while_a_conflict_is_decided_is_not_lost(world: World) -> None:
    """A decision that did not see the edit is not written; the next look decides with it."""
    one, two = await both_edited(world, one={"description": "one"}, two={"description": "two"})
    real, interfered = two.engine._resolver._decide, 0

    async def decide_slowly(*arguments: Any) -> Any:
        nonlocal interfered
        decided = await real(*arguments)
        if not interfered:
            interfered += 1
            world.clock.advance(1)
            edit(two, description="edited meanwhile")
        return decided

    two.engine._resolver._decide = decide_slowly  # type: ignore[method-assign,assignment]
    await settle(two, one, rounds=3)
    assert interfered == 1
    assert assert_agreed(one, two)["description"] == "edited meanwhile"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_point_of_resolving_changes_nothing_in_the_end(world: World, after: bool) -> None:
    """Each access to the store is once the last; all devices agree afterwards, and each conflict is in the log."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base")
    await settle(one, two)
    at, dying = 0, True
    while dying:
        at += 1
        world.clock.advance(1)
        edit(one, description=f"one {at}", tags=[f"one{at}"])
        world.clock.advance(1)
        edit(two, description=f"two {at}", tags=[f"two{at}"])
        assert (await one.sync()).ok
        dying = await die_in_a_round(two, at, after=after)
        await settle(two, one, rounds=2)
        assert assert_agreed(one, two)["description"] == f"two {at}"
    assert at > 10
    assert len(conflict_log.list_all(two.store)) >= at - 1


async def test_a_result_that_no_record_can_hold_stays_open_until_a_person_decides(world: World) -> None:
    """Nothing is cut and nothing is overwritten: both versions wait, and `restore` decides."""
    ours, theirs = ({f"{side}{n}": n for n in range(40)} for side in "fg")
    one, two = await both_edited(world, one=theirs, two=ours)
    for _ in range(2):
        report = await two.sync()
        assert (report.ok, report.conflicts.open, report.conflicts.resolved) == (True, 1, 0)
    found, before = records.get(two.store, S, ID), wire(one)
    assert found is not None and found.version.fields.items() >= ours.items()
    assert before is not None and before[0].items() >= theirs.items()
    (entry,) = conflict_log.list_open(two.store)
    with two.store.transaction():
        records.restore(two.store, entry, entry.remote)
    await settle(two, one)
    assert assert_agreed(one, two) == entry.remote.fields
    (entry,) = conflict_log.list_all(two.store)
    assert (entry.state, entry.strategy) == ("resolved", records.BY_HAND)


async def test_tool_metrics_sync_and_merge_like_sessions(world: World) -> None:
    """Counts that both devices raised since the base add up; merging again adds nothing."""
    one, two = await world.device("one"), await world.device("two")
    metric = tool_metrics.record_id("older", "metric-1")
    with one.store.transaction():
        tool_metrics.put(one.store, metric, {"tool": "Bash", "execution_count": 10, "error_count": 1})
    await settle(one, two)
    for device, executions in ((one, 13), (two, 15)):
        with device.store.transaction():
            tool_metrics.put(device.store, metric, {"execution_count": executions})
    await settle(one, two, rounds=3)
    for device in (one, two):
        found = tool_metrics.find(device.store, metric)
        assert found is not None and found.fields["execution_count"] == 18
        assert tool_metrics.count(device.store) == 1
    await settle(one, two, rounds=3)
    assert wire(one, metric, "tool_metric") == wire(two, metric, "tool_metric")
    assert wire(one, metric, "tool_metric") is not None


@pytest.mark.parametrize("second", ["bidirectional", "local_first", "remote_first"])
@pytest.mark.parametrize("first", ["bidirectional", "local_first", "remote_first"])
async def test_the_direction_can_change_while_data_is_pending(world: World, first: str, second: str) -> None:
    """Events and edits that waited under one direction go under the next; in the end both devices agree."""
    one, two = await world.device("one", settings=SETTINGS._replace(direction=first)), await world.device("two")
    edit(two, description="two", score=2)
    two.record(5, session="s-1")
    await settle(two)
    one.record(7, session="s-1")
    edit(one, description="one", tags=["x"])
    world.network.fault = lambda request: "before" if request.url.path.endswith("/records") else None
    await one.sync()
    world.network.fault = lambda _: None
    await _turn(one, SETTINGS._replace(direction=second))
    one.record(2, session="s-1")
    await settle(one, two)
    await _turn(one, SETTINGS)
    await settle(one, two, rounds=3)
    assert set(assert_agreed(one, two)) == {"description", "score", "tags"}
    assert one.counted() == two.counted() == 14
    assert one.event_ids() == two.event_ids() == world.event_ids()


async def _turn(device: Device, settings: Sync) -> None:
    await device.close()
    device.settings = settings
    device.open()


async def test_only_changed_fields_travel(world: World) -> None:
    """A delta on the wire: the field that changed, its stamp, and the revision that it builds on."""
    one = await world.device("one")
    edit(one, description="long text that must not go again", score=1)
    await settle(one)
    edit(one, score=2)
    (item,) = records.pending(one.store, 10)
    assert (item.changed, list(item.stamps), item.rev is not None) == ({"score": 2}, ["score"], True)


async def test_a_device_ten_years_ahead_that_gets_fixed_poisons_nobody(world: World) -> None:
    """Its edits are kept; nobody's later edit loses to them, before or after its clock is set right."""
    wrong = FakeClock(world.clock.now_us() + int(10 * YEAR_S) * 1_000_000)
    one, two = await world.device("one", clock=wrong), await world.device("two")
    edit(one, description="from the future", score=1)
    edit(one, "claude-code/other", description="kept too")
    await settle(one, two)
    world.clock.advance(10)
    wrong.advance(10)
    edit(two, description="from now")
    await settle(two, one)
    assert assert_agreed(one, two) == {"description": "from now", "score": 1}
    edit(one, score=2)
    wrong.jump(-10 * YEAR_S)
    edit(one, score=3)
    await settle(one, two)
    world.clock.advance(10)
    edit(two, score=4)
    await settle(two, one)
    assert assert_agreed(one, two) == {"description": "from now", "score": 4}
    assert wire(two, "claude-code/other") == wire(one, "claude-code/other") is not None
    limit_ms = world.clock.now_us() // 1000 + 5 * 60 * 1000
    for device in (one, two):
        assert hlc_mark.read(device.store).ms <= limit_ms
        found = records.get(device.store, S, ID)
        assert found is not None and all(parse_stamp(text).ms <= limit_ms for text in found.version.stamps.values())


async def test_a_clashing_edit_from_the_wrong_year_does_not_win_for_ever(world: World) -> None:
    """Both edited; the wrong clock's edit is re-based before it is compared, so the later sync decides, not the year."""
    wrong = FakeClock(world.clock.now_us() + int(10 * YEAR_S) * 1_000_000)
    one, two = await world.device("one", clock=wrong), await world.device("two")
    edit(one, description="base")
    await settle(one, two)
    edit(one, description="wrong year")
    assert (await one.sync()).ok
    world.clock.advance(10)
    edit(two, description="later by the server's time")
    await settle(two, one)
    assert assert_agreed(one, two)["description"] == "later by the server's time"


def test_restamped_edits_stay_behind_what_they_were_made_after(store: Store, clock: FakeClock) -> None:
    """Another device may be allowed four minutes ahead; our edit of what it wrote must not fall below its stamp."""
    server_ms = clock.now_us() // 1000
    theirs = Stamp(server_ms + 4 * 60_000 + 30_000, 7, "two").text()
    with store.transaction():
        records.pulled(store, _state({"score": 1}, theirs))
        records.edit(store, S, ID, {"score": 2})
        records.restamp(store, server_ms, server_ms + 5 * 60_000 - 1000)
    found = records.get(store, S, ID)
    assert found is not None and found.version.stamps["score"] > theirs


def test_a_full_counter_carries_and_order_holds(store: Store, clock: FakeClock) -> None:
    """65,536 edits in one millisecond, or a mark at its end: the next stamp is still later."""
    now_ms = clock.now_us() // 1000
    with store.transaction():
        state.put(store, hlc_mark.MARK, Stamp(now_ms, COUNTER_MAX, "local").text())
        made = hlc_mark.make(store)
    assert (made.ms, made.counter) == (now_ms + 1, 0)
    stamps = []
    with store.transaction():
        state.put(store, hlc_mark.MARK, Stamp(now_ms + 5, COUNTER_MAX - 1, "local").text())
        for score in range(4):
            stamps.append(records.edit(store, S, ID, {"score": score}).stamps["score"])
    assert stamps == sorted(set(stamps))


def _state(fields: dict[str, FieldValue], stamp: str) -> Any:
    from metricsd.protocol import RecordState

    return RecordState(type=S, id=ID, rev="1-x", device="two", fields=fields, stamps=dict.fromkeys(fields, stamp))


async def test_a_device_away_for_longer_than_tombstones_stay_learns_of_deletions(world: World) -> None:
    """Its own record, another's, and one that it edited meanwhile: all deleted, the edit is in the log."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, "claude-code/mine", description="mine")
    edit(two, "claude-code/theirs", description="theirs")
    edit(two, "claude-code/edited", description="edited")
    edit(two, "claude-code/alive", description="alive")
    await settle(one, two)
    one.record(3)
    await settle(one, two)
    for name in ("mine", "theirs", "edited"):
        edit(two, f"claude-code/{name}", delete=True)
    await settle(two, rounds=1)
    edit(one, "claude-code/edited", score=5)
    for _ in range(2):
        world.clock.advance(401 * DAY_S)
        edit(two, "claude-code/alive", description=f"alive at {world.clock.now_us()}")
        await settle(two, rounds=1)
    await settle(one, two, rounds=2)
    for name in ("mine", "theirs", "edited"):
        held = wire(one, f"claude-code/{name}")
        assert held is not None and held[1] is True, name
    assert wire(one, "claude-code/alive") == wire(two, "claude-code/alive")
    (entry,) = conflict_log.list_all(one.store)
    assert (entry.record_id, entry.local.fields["score"], entry.strategy) == ("claude-code/edited", 5, "delete_wins")
    assert one.event_ids() == two.event_ids()
    with one.store.transaction():
        records.restore(one.store, entry, entry.local)
    await settle(one, two)
    held = wire(two, "claude-code/edited")
    assert held is not None and held == wire(one, "claude-code/edited") and held[0]["score"] == 5


async def test_a_record_whose_history_the_cloud_lost_is_offered_whole(world: World) -> None:
    """A device that never pulls has no cursor to tell; its base tells, and no field is left out."""
    one = await world.device("one", settings=SETTINGS._replace(direction="local_first"))
    copy = await world.backup()
    edit(one, description="text", score=1)
    await settle(one)
    await world.restore(copy)
    edit(one, score=2)
    await settle(one)
    two = await world.device("two")
    await settle(two)
    held = wire(two)
    assert held is not None and held[0] == {"description": "text", "score": 2}


def test_closed_conflicts_are_forgotten_after_their_days_and_open_ones_never(store: Store, clock: FakeClock) -> None:
    """The loser can be restored for as long as the setting says, counted from the decision."""
    for rev, name in (("1-x", "a"), ("2-x", "b")):
        with store.transaction():
            versions = (None, Version(fields={"score": 1}), Version(fields={"score": 2}))
            conflict_log.begin(store, (S, name), versions, rev)
    clock.advance(50 * DAY_S)
    entry = conflict_log.find(store, 1)
    assert entry is not None
    with store.transaction():
        conflict_log.resolve(store, entry, entry.local, conflict_log.Decision("merge_fields", "x:1", None))
    clock.advance(89 * DAY_S)
    assert conflict_log.sweep(store, 90) == 0
    clock.advance(2 * DAY_S)
    assert conflict_log.sweep(store, 90) == 1
    assert [entry.record_id for entry in conflict_log.list_all(store)] == ["b"]


PAGE = 5


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE, 3 * PAGE + 1])
@pytest.mark.parametrize("kind", ["events", "records"])
async def test_every_page_boundary_brings_everything_once(world: World, kind: str, count: int) -> None:
    """Pages of 0, 1, N-1, N, N+1 and kN items, on the real client."""
    await world.stop()
    world.settings = world.settings._replace(page_max=PAGE)
    await world.start()
    one, two = await world.device("one"), await world.device("two")
    if kind == "events":
        one.record(count)
    for number in range(count if kind == "records" else 0):
        edit(one, f"claude-code/s{number}", score=number)
    await settle(one)
    world.network.requests.clear()
    report = await two.sync()
    assert report.ok, report.error
    # Session counters are records too: one for the one session of the events.
    items = count + (1 if kind == "events" and count else 0)
    assert world.network.requests.count("GET /sync/v1/changes") == max(-(-items // PAGE), 1)
    assert (report.pulled_events, report.pulled_records) == ((count, min(count, 1)) if kind == "events" else (0, count))
    again = await two.sync()
    assert (again.pulled_events, again.pulled_records) == (0, 0)


async def test_a_page_that_changes_while_it_is_fetched_loses_and_doubles_nothing(world: World) -> None:
    """Between two pages another device edits a record of each page and records more events."""
    await world.stop()
    world.settings = world.settings._replace(page_max=PAGE)
    await world.start()
    one, two = await world.device("one"), await world.device("two")
    one.record(12)
    for number in range(12):
        edit(one, f"claude-code/s{number}", score=number)
    await settle(one)
    pages, client = 0, two.engine

    async def change() -> None:
        edit(one, f"claude-code/s{pages}", score=50 + pages)
        edit(one, f"claude-code/s{11 - pages}", delete=True)
        one.record(2, tag=f"during{pages}")
        assert (await one.sync()).ok

    from metricsd.client import ChangesPage, CloudClient

    class Changing(CloudClient):
        async def changes(self, cursor: str, limit: int, *, only_records: bool = False) -> ChangesPage:
            nonlocal pages
            page = await super().changes(cursor, limit, only_records=only_records)
            if pages < 4:
                pages += 1
                await change()
            return page

    def connect(url: str, token: str, settings: Sync) -> CloudClient:
        return Changing(url, token, settings, transport=world.network)

    client._connect = connect
    await settle(two, one, two)
    assert pages == 4
    for number in range(12):
        assert wire(one, f"claude-code/s{number}") == wire(two, f"claude-code/s{number}"), number
    assert one.event_ids() == two.event_ids() == world.event_ids()
    assert one.counted() == two.counted() == 12 + 8


values = st.one_of(
    st.tuples(st.just("description"), st.sampled_from(["x", "y", None])),
    st.tuples(st.just("score"), st.integers(0, 3)),
    st.tuples(st.just("tags"), st.lists(st.sampled_from("abc"), unique=True, max_size=3)),
    st.tuples(st.just("delete"), st.just(True)),
)
steps = st.lists(st.tuples(st.integers(0, 2), st.one_of(values, st.just(("sync", None)))), max_size=25)


@settings(max_examples=25)
@given(history=steps)
def test_after_any_history_three_devices_hold_the_same(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[int, tuple[str, Any]]]
) -> None:
    """Edits, deletions and rounds of three devices in any order: in the end all replicas are equal."""
    import asyncio

    async def play() -> None:
        world = World(tmp_path_factory.mktemp("law"), FakeClock())
        await world.start()
        devices = [await world.device(name) for name in ("one", "two", "three")]
        for number, (what, value) in history:
            world.clock.advance(1)
            if what == "sync":
                assert (await devices[number].sync()).ok
            elif what == "delete":
                edit(devices[number], delete=True)
            else:
                edit(devices[number], **{what: value})
        await settle(*devices, rounds=4)
        held = [wire(device) for device in devices]
        assert held[0] == held[1] == held[2], held
        assert all(records.pending_count(device.store) == 0 for device in devices)
        await world.close()

    asyncio.run(play())


async def test_a_restored_device_gets_its_own_later_edits_back_and_keeps_the_unsent_ones(world: World) -> None:
    """The copy is older than what the device itself wrote to the cloud; nothing of either is lost."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="old")
    one.record(5)
    await settle(one, two)
    edit(one, score=1)
    copy = await one.backup()
    edit(one, description="new", tags=["after the copy"])
    one.record(3, tag="after-the-copy")
    await settle(one, two)
    await one.restore(copy)
    world.clock.advance(1)
    edit(one, session_type="after the restore")
    await settle(one, two, rounds=3)
    assert assert_agreed(one, two) == {
        "description": "new", "tags": ["after the copy"], "score": 1, "session_type": "after the restore",
    }  # fmt: skip


async def test_two_clones_that_edit_one_record_both_keep_their_edits(world: World) -> None:
    """One becomes a new device; its edits are another device's from then on, and merge like any."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base", tags=["a"])
    one.record(5)
    await settle(one, two)
    clone = world.unborn("clone")
    await clone.restore(await one.backup())
    for device, name in ((one, "original"), (clone, "clone")):
        world.clock.advance(1)
        device.record(4, tag=name)
        edit(device, tags=["a", name], description=name)
    await settle(one, clone, two, rounds=3)
    found = assert_agreed(one, clone, two)
    assert found["description"] == "clone"
    assert isinstance(found["tags"], list) and sorted(found["tags"]) == ["a", "clone", "original"]


async def test_a_cloud_restored_while_both_sides_edit_loses_no_edit(world: World) -> None:
    """What the copy lacks is offered again, and what clashes with it is resolved, not overwritten."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base", score=1)
    await settle(one, two)
    copy = await world.backup()
    edit(one, description="in the lost history")
    await settle(one, two)
    await world.restore(copy)
    world.clock.advance(1)
    edit(one, tags=["one"])
    edit(two, tags=["two"], session_type="review")
    await settle(two, one, rounds=3)
    found = assert_agreed(one, two)
    assert (found["description"], found["score"], found["session_type"]) == ("in the lost history", 1, "review")
    assert isinstance(found["tags"], list) and sorted(found["tags"]) == ["one", "two"]


async def test_a_merged_value_is_later_than_both_it_was_made_from(world: World) -> None:
    """So that neither side can win over it afterwards; a value that one side has keeps that side's stamp."""
    one, two = await both_edited(world, one={"tags": ["a", "b", "c"], "description": "one"}, two={"tags": ["b", "d"]})
    await settle(two, one)
    (entry,) = conflict_log.list_all(two.store)
    assert entry.result is not None
    assert entry.result.stamps["tags"] > max(entry.local.stamps["tags"], entry.remote.stamps["tags"])
    assert entry.result.stamps["description"] == entry.remote.stamps["description"]


def test_a_field_that_only_the_clouds_tombstone_has_is_cleared_by_name(store: Store) -> None:
    """Bringing a record back must not bring back on the cloud what this device never had."""
    with store.transaction():
        records.pulled(store, _tombstone("1-x", {"score": 1}))
        records.edit(store, S, ID, {"description": "back"})
        records.pulled(store, _tombstone("2-x", {"score": 1, "session_type": "never seen"}))
    (item,) = records.pending(store, 10)
    assert (item.rev, item.deleted) == ("2-x", False)
    assert item.changed == {"score": 1, "description": "back", "session_type": None}


def _tombstone(rev: str, fields: dict[str, FieldValue]) -> Any:
    from metricsd.protocol import RecordState

    stamp = "0198f0000000-0000-two"
    return RecordState(type=S, id=ID, rev=rev, device="two", fields=fields, deleted=True, stamp=stamp)
