"""Records: edits, the compare-and-set with the cloud, conflicts, and stamps that a wrong clock made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.clock import US_PER_MS
from metricsd.errors import LineRejected
from metricsd.hlc import parse_stamp
from metricsd.ids import DeviceId
from metricsd.protocol import FieldValue, RecordState
from metricsd.store import conflict_log, events, hlc_mark, outbox, records
from metricsd.store.connection import Store
from metricsd.store.records import Met, Version
from tests.fakes import FakeClock

S, ID = "session", "claude-code/s-1"
YEAR_S = 366 * 86400.0


def edit(store: Store, delete: bool = False, **fields: FieldValue) -> Version:
    with store.transaction():
        return records.edit(store, S, ID, fields, delete=delete)


def pushed(store: Store, rev: str) -> None:
    with store.transaction():
        (item,) = records.pending(store, 10)
        records.applied(store, item, rev)


def pull(
    store: Store, rev: str, stamp: str = "0198f0000000-0000-two", deleted: bool = False, **fields: FieldValue
) -> Met:
    remote = RecordState(
        type=S, id=ID, rev=rev, device="two", fields=fields, stamps=dict.fromkeys(fields, stamp),
        deleted=deleted, stamp=stamp if deleted else None,
    )  # fmt: skip
    with store.transaction():
        return records.pulled(store, remote)


def now(store: Store) -> dict[str, FieldValue]:
    found = records.get(store, S, ID)
    assert found is not None
    return found.version.fields


def test_an_edit_stamps_what_changed_and_only_that(store: Store, clock: FakeClock) -> None:
    """A field that already has the value keeps its stamp and does not make the record dirty."""
    first = edit(store, description="a", score=1)
    clock.advance(1)
    second = edit(store, description="a", score=2)
    assert second.stamps["description"] == first.stamps["description"]
    assert second.stamps["score"] > first.stamps["score"]
    dirty = records.get(store, S, ID)
    assert edit(store, score=2) == second and records.get(store, S, ID) == dirty


def test_stamps_only_grow_while_the_clock_stands_still_or_goes_back(store: Store, clock: FakeClock) -> None:
    """The mark is kept: a restart and a clock set back by a year change nothing."""
    stamps = []
    for n in range(5):
        stamps.append(edit(store, score=n).stamps["score"])
        clock.jump(-YEAR_S if n == 2 else 0)
    assert stamps == sorted(set(stamps))


def test_a_stamp_seen_from_elsewhere_is_passed_by_the_next_edit(store: Store) -> None:
    """An edit made after seeing another device's is later than it, whatever this machine's clock says."""
    ahead = hlc_mark.make(store)._replace(ms=hlc_mark.read(store).ms + 60_000, device="two").text()
    pull(store, "1-x", stamp=ahead, score=1)
    with store.transaction():
        other = records.edit(store, S, "claude-code/another", {"score": 2})
    assert other.stamps["score"] > ahead


def test_only_what_changed_since_the_base_is_pushed(store: Store) -> None:
    """The first push has all fields, a later one the changed ones with the revision they build on."""
    edit(store, description="a", score=1)
    assert records.pending(store, 10)[0].changed == {"description": "a", "score": 1}
    pushed(store, "1-x")
    assert records.pending(store, 10) == []
    edit(store, score=2)
    (item,) = records.pending(store, 10)
    assert (item.rev, item.changed, list(item.stamps)) == ("1-x", {"score": 2}, ["score"])


def test_an_edit_during_a_push_stays_to_be_pushed(store: Store) -> None:
    """The answer settles the version that was sent, not the one made meanwhile."""
    edit(store, score=1)
    (item,) = records.pending(store, 10)
    edit(store, score=2)
    with store.transaction():
        records.applied(store, item, "1-x")
    (rest,) = records.pending(store, 10)
    assert (rest.rev, rest.changed) == ("1-x", {"score": 2})


def test_a_deletion_is_pushed_and_an_edit_brings_the_record_back(store: Store) -> None:
    """A tombstone carries no fields; after it, all fields go again."""
    edit(store, description="a", score=1)
    pushed(store, "1-x")
    edit(store, delete=True)
    (item,) = records.pending(store, 10)
    assert (item.deleted, item.changed, item.stamp is not None) == (True, {}, True)
    pushed(store, "2-x")
    edit(store, score=3)
    (item,) = records.pending(store, 10)
    assert (item.deleted, item.changed) == (False, {"description": "a", "score": 3})


def test_a_record_that_is_not_dirty_adopts_the_clouds_version(store: Store) -> None:
    """New, changed and deleted versions are taken over, and nothing waits to be pushed."""
    assert pull(store, "1-x", score=1) is Met.ADOPTED
    assert pull(store, "2-x", score=2) is Met.ADOPTED
    assert now(store) == {"score": 2}
    assert pull(store, "3-x", deleted=True) is Met.ADOPTED
    assert records.pending(store, 10) == [] and conflict_log.count_open(store) == 0


def test_both_changed_opens_one_conflict_and_overwrites_nothing(store: Store) -> None:
    """The log has base, local and remote; later versions of either side are kept current in it."""
    pull(store, "1-x", description="base")
    edit(store, description="here")
    assert pull(store, "2-x", description="there") is Met.CONFLICT
    assert pull(store, "3-x", description="there again") is Met.CONFLICT
    edit(store, description="here again")
    (conflict,) = conflict_log.list_open(store)
    found = [version.fields["description"] for version in (conflict.base, conflict.local, conflict.remote) if version]
    assert found == ["base", "here again", "there again"] and conflict.remote_rev == "3-x"
    assert now(store) == {"description": "here again"}
    assert records.pending(store, 10) == [] and records.pending_count(store) == 0


def test_creating_what_exists_is_a_conflict_without_a_base(store: Store) -> None:
    """Two devices made the same record; equal ones are no conflict, different ones are."""
    edit(store, score=1)
    assert pull(store, "1-x", score=2) is Met.CONFLICT
    assert conflict_log.list_open(store)[0].base is None


def test_both_sides_saying_the_same_settles_a_conflict(store: Store) -> None:
    """When the versions have become equal nothing is left to decide."""
    pull(store, "1-x", score=1)
    edit(store, score=2)
    pull(store, "2-x", score=3)
    edit(store, score=3)
    assert pull(store, "2-x", score=3) is Met.SAME
    assert conflict_log.count_open(store) == 0 and records.pending(store, 10) == []
    found = conflict_log.find(store, 1)
    assert found is not None and found.state == "settled"


def test_a_dirty_record_whose_base_is_the_clouds_version_stays_to_be_pushed(store: Store) -> None:
    """The feed brings our own base again, under another revision: that is no conflict."""
    pull(store, "1-x", score=1)
    edit(store, score=2)
    assert pull(store, "9-y", score=1) is Met.AHEAD
    assert [(item.rev, item.changed) for item in records.pending(store, 10)] == [("9-y", {"score": 2})]


def test_our_own_push_whose_answer_was_lost_is_no_conflict(store: Store) -> None:
    """Edited again before the answer was known: the cloud's version is ours, and the newer edit goes on top of it."""
    device = DeviceId("d" * 32)
    outbox.enrol(store, device, "cloud")
    sent = edit(store, score=1)
    with store.transaction():
        records.note_sending(store, records.pending(store, 10))
    edit(store, score=2)
    state = RecordState(type=S, id=ID, rev="1-x", device=device, fields=sent.fields, stamps=sent.stamps)
    with store.transaction():
        assert records.pulled(store, state) is Met.AHEAD
    assert [(item.rev, item.changed) for item in records.pending(store, 10)] == [("1-x", {"score": 2})]


def test_our_own_version_from_before_a_restore_is_not_thrown_away(store: Store) -> None:
    """A store restored from an older copy finds its own later version in the cloud, and takes it."""
    device = DeviceId("d" * 32)
    outbox.enrol(store, device, "cloud")
    edit(store, score=1)
    pushed(store, "1-x")
    later = hlc_mark.read(store)._replace(ms=hlc_mark.read(store).ms + 5, device=device).text()
    state = RecordState(type=S, id=ID, rev="2-x", device=device, fields={"score": 7}, stamps={"score": later})
    with store.transaction():
        assert records.pulled(store, state) is Met.ADOPTED
    assert now(store) == {"score": 7}


def test_after_lost_history_our_own_past_is_no_conflict(store: Store) -> None:
    """A cloud restored from a copy has an older version that we have seen: ours goes on top of it."""
    old = edit(store, score=1)
    pushed(store, "1-x")
    edit(store, score=2)
    pushed(store, "2-x")
    with store.transaction():
        records.reoffer(store)
    assert pull(store, "1-z", stamp=old.stamps["score"], score=1) is Met.AHEAD
    assert [(item.rev, item.changed) for item in records.pending(store, 10)] == [("1-z", {"score": 2})]


def test_after_lost_history_another_devices_change_is_adopted(store: Store) -> None:
    """An unedited record that is offered again takes a newer version of the cloud's."""
    edit(store, score=1)
    pushed(store, "1-x")
    with store.transaction():
        records.reoffer(store)
    newer = parse_stamp(hlc_mark.read(store).text())._replace(ms=hlc_mark.read(store).ms + 5).text()
    assert pull(store, "1-z", stamp=newer, score=7) is Met.ADOPTED
    assert now(store) == {"score": 7}


def test_stamps_of_a_wrong_year_are_rebased_in_their_order(store: Store, clock: FakeClock) -> None:
    """The edit is kept, its order among its like too, and the mark goes back to the cloud's time."""
    right_ms = clock.now_us() // US_PER_MS
    clock.jump(10 * YEAR_S)
    edit(store, description="a")
    edit(store, score=1)
    clock.jump(-10 * YEAR_S)
    with store.transaction():
        assert records.restamp(store, right_ms, right_ms) == 1
    found = records.get(store, S, ID)
    assert found is not None
    assert found.version.stamps["description"] < found.version.stamps["score"]
    assert {parse_stamp(stamp).ms for stamp in found.version.stamps.values()} == {right_ms} == {hlc_mark.read(store).ms}


def test_stamps_made_before_the_login_get_the_device_id(store: Store) -> None:
    """Two devices must not both be called `local`, or ties would be decided differently on each."""
    edit(store, score=1)
    edit(store, delete=True)
    device = DeviceId("d" * 32)
    outbox.enrol(store, device, "cloud")
    found = records.get(store, S, ID)
    assert found is not None and found.version.stamp is not None
    assert {parse_stamp(s).device for s in (*found.version.stamps.values(), found.version.stamp)} == {device}
    assert events.device_id_of(store, events.own_device(store)) == device


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"id": "x" * 513},
        {"type": "no such; type"},
        {"rev": ""},
        {"fields": {"a b": 1}},
        {"fields": {"big": 2**63}},
        {"fields": {"nan": float("inf")}},
        {"fields": {"long": "x" * 20_000}},
        {"fields": {f"f{n}": n for n in range(65)}},
        {"stamps": {"score": "never"}},
        {"stamps": {"other": "0198f0000000-0000-two"}},
        {"stamp": "soon"},
    ],
)
def test_a_version_that_cannot_be_is_refused(store: Store, wrong: dict[str, Any]) -> None:
    """Whatever a hostile cloud sends, the record stays as it was."""
    values: dict[str, Any] = {"type": S, "id": ID, "rev": "1-x", "device": "two", "fields": {"score": 1}} | wrong
    with pytest.raises(LineRejected), store.transaction():
        records.pulled(store, RecordState(**values))
    assert store.db.execute("SELECT count(*) FROM record").fetchone() == (0,)


fields_strategy = st.dictionaries(st.sampled_from("abc"), st.sampled_from([1, 2, "x"]), max_size=3)
versions = st.builds(Version, fields=fields_strategy, deleted=st.booleans())


@given(versions, st.none() | versions, versions)
def test_meeting_is_total_and_never_drops_an_edit(local: Version, base: Version | None, remote: Version) -> None:
    """A local edit is adopted over only when the cloud says the same."""
    met = records.meet(local, base, remote)
    edited = base is None or not records.same(local, base)
    if met is Met.ADOPTED:
        assert not edited
    if met is Met.SAME:
        assert records.same(local, remote)
    if met is Met.AHEAD:
        assert base is not None and records.same(remote, base)
    if met is Met.CONFLICT:
        assert edited and not records.same(local, remote)


pulls = st.tuples(st.just("pull"), st.integers(1, 5), fields_strategy)
edits = st.tuples(st.just("edit"), st.just(0), fields_strategy)


@settings(max_examples=40)
@given(steps=st.lists(st.one_of(pulls, edits), max_size=8))
def test_pulling_twice_is_pulling_once(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """After any history, a page that is applied again changes nothing."""
    store = Store.open(tmp_path_factory.mktemp("law") / "store.db", clock=FakeClock())
    events.own_device(store)
    for what, rev, fields in steps:
        if what == "edit":
            edit(store, **fields)
            continue
        pull(store, f"{rev}-x", **fields)
        once = dump(store)
        again = pull(store, f"{rev}-x", **fields)
        assert dump(store) == once or again is Met.AHEAD
    store.close()


def dump(store: Store) -> list[Any]:
    return [store.db.execute(f"SELECT * FROM {table}").fetchall() for table in ("record", "conflict_log", "state")]
