"""Offers whose answer is lost, forks and revisions, on real stores and engines: each test is a fault that was found.

The long runs of `tests/sim` showed them first, as histories of some fifty steps; here each is cut down to its cause.
"""

from __future__ import annotations

import pytest

from metricsd.cloud.comparing import STAMP_AHEAD_MS_MAX
from metricsd.hlc import Stamp, parse_stamp
from metricsd.ids import DeviceId
from metricsd.protocol import FieldValue, RecordResult, RecordState
from metricsd.store import conflict_log, hlc_mark, outbox, place, records, state
from metricsd.store.connection import Store
from metricsd.store.outbox import CURSOR
from metricsd.store.record_steps import SENT_MAX, Record, decided, offered, sending
from metricsd.store.records import Met, Version
from metricsd.sync import push
from tests.fakes import FakeClock
from tests.sync.test_resolving import assert_agreed, edit, wire
from tests.sync.test_rounds import settle
from tests.sync.world import World

S, ID = "session", "claude-code/s-1"
ME, NEXT = DeviceId("d" * 32), DeviceId("e" * 32)
MINUTE_MS = 60_000


@pytest.fixture
def home(store: Store) -> Store:
    """Return a store that is enrolled."""
    outbox.enrol(store, ME, "cloud")
    return store


def change(store: Store, clock: FakeClock, *, delete: bool = False, **fields: FieldValue) -> Version:
    """Edit the record, a second later than before."""
    clock.advance(1)
    with store.transaction():
        return records.edit(store, S, ID, fields, delete=delete)


def offer(store: Store) -> records.Pending:
    """Offer the record as a round does; its answer is up to the test."""
    (item,) = push._offer(store, 10, ("", ""))
    return item


def agree(store: Store, rev: str) -> None:
    """Push the record and take the answer."""
    item = offer(store)
    with store.transaction():
        records.applied(store, item, rev)


def meet(store: Store, version: Version, rev: str, device: str = ME) -> Met:
    """Take the cloud's version from the feed."""
    remote = RecordState(
        type=S, id=ID, rev=rev, device=device, fields=version.fields, stamps=version.stamps,
        deleted=version.deleted, stamp=version.stamp,
    )  # fmt: skip
    with store.transaction():
        return records.pulled(store, remote)


def held(store: Store) -> Record:
    """Return the record."""
    record = records.get(store, S, ID)
    assert record is not None
    return record


def later(store: Store, seconds: int = 1) -> str:
    """Return a stamp that carries this device's id and was made elsewhere, later than all here."""
    mark = hlc_mark.read(store)
    return Stamp(mark.ms + seconds * 1000, 0, ME).text()


def test_a_deletion_that_was_offered_and_taken_back_is_known_again(home: Store, clock: FakeClock) -> None:
    """Its push arrived, its answer did not: the record that was brought back goes on top of it."""
    change(home, clock, description="a")
    agree(home, "1-x")
    gone = change(home, clock, delete=True)
    offer(home)
    change(home, clock, tags=["back"])
    assert meet(home, gone, "2-x") is Met.AHEAD
    assert conflict_log.count_open(home) == 0 and not held(home).version.deleted


def test_an_offer_that_clears_without_a_stamp_is_known_again(home: Store, clock: FakeClock) -> None:
    """A decision that leaves a field out clears it by name, and the cloud keeps the stamp that was there."""
    change(home, clock, description="a", score=1)
    agree(home, "1-x")
    theirs = held(home).version
    stamp = later(home)
    clock.advance(5)
    with home.transaction():
        cleared = Version(fields={"description": "b"}, stamps={"description": stamp})
        records._put(home, S, ID, decided(held(home), theirs, "1-x", cleared))
    offer(home)
    change(home, clock, description="c")
    fields: dict[str, FieldValue] = {"description": "b", "score": None}
    assert meet(home, Version(fields=fields, stamps=theirs.stamps | {"description": stamp}), "2-x") is Met.AHEAD


@pytest.mark.parametrize("offers", [False, True])
def test_a_deletion_under_our_id_that_was_not_offered_here_is_anothers(
    home: Store, clock: FakeClock, *, offers: bool
) -> None:
    """A clone deleted it, or we ourselves did before this store was put back: who brought it back did not know."""
    change(home, clock, description="a")
    agree(home, "1-x")
    base = held(home).version
    twins = Version(fields=base.fields, stamps=base.stamps, deleted=True, stamp=later(home))
    clock.advance(5)
    change(home, clock, delete=True)
    if offers:
        offer(home)
    change(home, clock, tags=["back"])
    assert meet(home, twins, "2-x") is Met.CONFLICT


@pytest.mark.parametrize("later_too", [False, True])
def test_edits_under_our_id_that_were_not_offered_here_are_merged_and_logged(
    home: Store, clock: FakeClock, *, later_too: bool
) -> None:
    """What a clone added would be lost without a trace if its id, or a stamp of the same moment, made it ours."""
    change(home, clock, description="a", tags=["a"])
    agree(home, "1-x")
    base = held(home).version
    stamp = later(home, 1)
    twins = Version(fields=base.fields | {"tags": ["a", "twin"]}, stamps=base.stamps | {"tags": stamp})
    mine = change(home, clock, tags=["a", "here"])
    assert mine.stamps["tags"] == stamp
    offer(home)
    if later_too:
        change(home, clock, tags=["a", "here", "more"])
    assert meet(home, twins, "2-x") is Met.CONFLICT


def test_an_offer_is_on_disk_before_it_leaves_and_forgotten_with_its_answer(home: Store, clock: FakeClock) -> None:
    """What was sent is remembered for as long as the base stands, within a bound."""
    change(home, clock, description="a")
    offer(home)
    assert len(held(home).sent) == 1
    before = home.db.total_changes
    offer(home)
    assert home.db.total_changes == before, "the same offer is written once"
    agree(home, "1-x")
    assert held(home).sent == ()
    record = held(home)
    for number in range(SENT_MAX + 5):
        stamp = Stamp(number, 0, ME).text()
        version = Version(fields={"description": "a", "score": number}, stamps={"score": stamp})
        record = sending(record, offered(S, ID, record._replace(version=version)))
    assert len(record.sent) == SENT_MAX and record.sent[-1].startswith(Stamp(SENT_MAX + 4, 0, ME).text())


def test_a_confirmed_base_is_what_the_cloud_holds(home: Store, clock: FakeClock) -> None:
    """A tombstone keeps the fields that were there, a cleared field its stamp: the feed brings no news of them."""
    change(home, clock, description="a", score=1)
    agree(home, "1-x")
    cloud = held(home).version
    change(home, clock, description="never sent")
    gone = change(home, clock, delete=True)
    agree(home, "2-x")
    change(home, clock, tags=["back"])
    tombstone = Version(fields=cloud.fields, stamps=cloud.stamps, deleted=True, stamp=gone.stamp)
    assert held(home).base == tombstone
    assert meet(home, tombstone, "2-x") is Met.AHEAD
    assert home.db.execute("SELECT count(*) FROM conflict_log").fetchone() == (0,)


def test_what_was_edited_there_and_back_does_not_look_edited_once_it_is_agreed(home: Store, clock: FakeClock) -> None:
    """Its later stamp was never sent: kept, each change of another would be a conflict, under local_wins for ever."""
    change(home, clock, description="a", tags=["a"])
    agree(home, "1-x")
    agreed = held(home).version.stamps["tags"]
    change(home, clock, tags=["a", "b"])
    change(home, clock, description="b", tags=["a"])
    item = offer(home)
    change(home, clock, score=1)
    with home.transaction():
        records.applied(home, item, "2-x")
    assert held(home).version.stamps["tags"] == agreed
    agree(home, "3-x")
    mine = held(home)
    assert mine.version == mine.base and mine.version.stamps["tags"] == agreed
    theirs = Version(fields=mine.version.fields | {"tags": ["c"]}, stamps=mine.version.stamps | {"tags": later(home)})
    assert meet(home, theirs, "4-x", "other") is Met.ADOPTED


def test_a_fork_keeps_the_history_that_it_is_in(home: Store, clock: FakeClock) -> None:
    """A new id is no lost history: a deletion older than when we last brought the record back is news, not our past."""
    change(home, clock, description="a")
    agree(home, "1-x")
    early = later(home)
    clock.advance(5)
    change(home, clock, delete=True)
    change(home, clock, tags=["back"])
    agree(home, "3-x")
    with home.transaction():
        state.put(home, CURSOR, "7-aa")
    outbox.fork(home, NEXT)
    assert held(home).rev == "3-x" and state.get_text(home, CURSOR) == ""
    assert place.newest(home, "") == "7-aa", "the next hello still shows which history this is"
    base = held(home).version
    tombstone = Version(fields=base.fields, stamps=base.stamps, deleted=True, stamp=early)
    assert meet(home, tombstone, "9-x", "other") is Met.ADOPTED


def test_a_new_login_keeps_the_history_of_the_same_cloud_alone(home: Store, clock: FakeClock) -> None:
    """Of another cloud nothing is known: all is offered as new."""
    change(home, clock, description="a")
    agree(home, "1-x")
    outbox.enrol(home, NEXT, "cloud")
    assert held(home).rev == "1-x" and place.newest(home, "") == "1-x"
    outbox.enrol(home, ME, "elsewhere")
    assert held(home).rev is None and place.newest(home, "") == ""


def test_the_revision_in_a_conflicts_answer_is_a_place_that_was_seen(home: Store, clock: FakeClock) -> None:
    """A cloud that loses it again must be found out: what was decided on top of it stands on nothing then."""
    change(home, clock, description="a")
    item = offer(home)
    theirs = RecordState(type=S, id=ID, rev="41-ab", device="other", fields={"score": 1}, stamps={"score": later(home)})
    with home.transaction():
        assert records.conflict(home, item, theirs) is Met.CONFLICT
    assert place.newest(home, "7-aa") == "41-ab"


def test_a_refused_stamp_is_rebased_onto_the_clouds_time_as_at_a_hello(home: Store, clock: FakeClock) -> None:
    """An edit that a push re-based, and a later one that a hello re-bases, keep their order."""
    server_ms = clock.now_us() // 1000
    clock.advance(3600)
    change(home, clock, description="first")
    item = offer(home)
    limit = Stamp(server_ms + STAMP_AHEAD_MS_MAX, 0, "cloud").text()
    assert push._settle_records(home, [item], [RecordResult(status="restamp", stamp=limit)], lambda *_: None)
    first = held(home).version.stamps["description"]
    assert server_ms <= parse_stamp(first).ms < server_ms + 1000
    agree(home, "1-x")
    change(home, clock, description="second")
    with home.transaction():
        records.restamp(home, server_ms + 1000, server_ms + 5 * MINUTE_MS - 1000)
    assert first < held(home).version.stamps["description"]


def test_an_offered_stamp_that_the_cloud_may_have_keeps_its_name(home: Store, clock: FakeClock) -> None:
    """Renamed, the cloud's copy of it would look like somebody's later edit, and win over what was made after it."""
    server_ms = clock.now_us() // 1000
    clock.advance(4.5 * 60)
    sent = change(home, clock, description="offered")
    offer(home)
    change(home, clock, description="newer")
    with home.transaction():
        records.restamp(home, server_ms, server_ms + 5 * MINUTE_MS - 1000)
    assert held(home).version.stamps["description"] > sent.stamps["description"]
    assert meet(home, sent, "1-x") is Met.AHEAD


async def test_a_clone_that_brings_back_what_the_other_deleted_does_not_undo_that(world: World) -> None:
    """Both have one id, and both deleted it: bringing back one's own deletion says nothing about the other's."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base")
    await settle(one, two)
    clone = world.unborn("clone")
    await clone.restore(await one.backup())
    for device in (one, clone):
        world.clock.advance(1)
        edit(device, delete=True)
    world.clock.advance(1)
    edit(clone, tags=["back"])
    await settle(one, clone, two, rounds=3)
    assert_agreed(one, clone, two)
    found = wire(two)
    assert found is not None and found[1], "the deletion holds"
    logged = clone.store.db.execute("SELECT count(*) FROM conflict_log WHERE state = 'resolved'").fetchone()
    assert logged == (1,), "what the clone wrote can be restored"


async def test_a_restored_home_does_not_overwrite_what_it_had_sent_since(world: World) -> None:
    """Its own later version is news to it: both are merged, nothing is lost without a log row."""
    one, two = await world.device("one"), await world.device("two")
    edit(one, description="base", tags=["a"])
    await settle(one, two)
    copy = await one.backup()
    world.clock.advance(1)
    edit(one, tags=["a", "sent since"])
    await settle(one, two)
    await one.restore(copy)
    world.clock.advance(1)
    edit(one, tags=["a", "after the restore"])
    await settle(one, two)
    tags = assert_agreed(one, two)["tags"]
    assert isinstance(tags, list) and sorted(tags) == ["a", "after the restore", "sent since"]
    assert one.store.db.execute("SELECT count(*) FROM conflict_log").fetchone() == (1,)


async def test_a_fork_during_a_restore_of_the_cloud_offers_what_was_lost(world: World) -> None:
    """The place is shown under the new id as well: the cloud does not know it, and gets its records back."""
    one, two = await world.device("one"), await world.device("two")
    one.record(3)
    await settle(one, two)
    copy = await world.backup()
    edit(one, description="lost with the cloud")
    await settle(one, two)
    clone = world.unborn("clone")
    await clone.restore(await one.backup())
    await world.restore(copy)
    one.record(2, tag="original")
    clone.record(2, tag="clone")
    await settle(one, clone, two, rounds=3)
    assert assert_agreed(one, clone, two) == {"description": "lost with the cloud"}
