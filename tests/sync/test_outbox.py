"""The stream's marks: what is sent next, what an answer settles, and what forks, rewinds and logins do to it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.ids import DeviceId
from metricsd.store import counters, events, outbox, records, state
from metricsd.store.connection import Store
from metricsd.store.outbox import Settled, Stream
from metricsd.store.quarantine import Reject
from tests.fakes import FakeClock
from tests.samples import make_item

A, B = DeviceId("a" * 32), DeviceId("b" * 32)
CLOUD = "cloud"
_OWN_EVENTS = "SELECT count(*) FROM event AS e JOIN device AS d ON d.id = e.device WHERE d.own"


def record(store: Store, count: int) -> None:
    first = events.last_pos(store)
    with store.transaction():
        events.insert(store, [make_item(first + n) for n in range(count)], device=events.own_device(store))


def enrolled(store: Store, count: int = 10) -> Stream:
    record(store, count)
    return outbox.enrol(store, A, CLOUD)


def acked(store: Store, stream: Stream, seq: int) -> Stream:
    event_id = outbox.id_at(store, stream, seq)
    assert event_id is not None
    return outbox.acknowledge(store, stream, Settled(seq, event_id.hex(), range(1, seq + 1)))


def totals(store: Store) -> dict[str, int]:
    """Return device id -> events by the session counters, and check that the daily totals say the same."""
    sql = "SELECT d.device_id, sum({}) FROM {} AS t JOIN device AS d ON d.id = t.device GROUP BY d.device_id"
    counted = dict(store.db.execute(sql.format("events", "session_counters")).fetchall())
    return {device: n for device, n in counted.items() if n}


def test_the_first_enrolment_names_the_device_and_offers_everything(store: Store) -> None:
    """What was recorded before the login belongs to the new device id, and all of it waits."""
    stream = enrolled(store)
    assert events.device_id_of(store, events.own_device(store)) == A
    assert [item.seq for item in outbox.next_items(store, stream, 100)] == list(range(1, 11))
    assert (outbox.pending_events(store), totals(store)) == (10, {A: 10})
    assert outbox.enrol(store, A, CLOUD) == stream


def test_acknowledging_moves_the_mark_and_never_back(store: Store) -> None:
    """Pending events are those behind the mark; an older answer that comes late changes nothing."""
    stream = acked(store, enrolled(store), 7)
    assert [item.seq for item in outbox.next_items(store, stream, 2)] == [8, 9]
    assert outbox.pending_events(store) == 3
    late = acked(store, stream, 3)
    assert (late.acked_seq, late.acked_id) == (7, stream.acked_id)
    assert outbox.find(store) == late


def test_an_acknowledgement_is_on_disk_before_it_counts(store: Store) -> None:
    """The mark moves in a FULL transaction: after power loss the cloud must not have to be asked for our past."""
    stream = enrolled(store)
    acked(store, stream, 1)
    assert store.db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_an_event_that_another_device_has_becomes_that_devices(store: Store) -> None:
    """Counters and totals follow, so that nothing counts twice."""
    stream = enrolled(store)
    outbox.acknowledge(store, stream, Settled(10, "ff" * 16, [1, 2, 3, 4, 5, 6, 7], {B: [8, 9, 10]}))
    assert totals(store) == {A: 7}
    assert store.db.execute(
        "SELECT count(*) FROM event WHERE device = ?", (events.device_row(store, B),)
    ).fetchone() == (3,)


def test_a_skipped_event_is_passed_over_but_not_acknowledged(store: Store) -> None:
    """The next batch begins behind it and its base is still what the cloud acknowledged."""
    stream = outbox.skip(store, acked(store, enrolled(store), 3), 4, Reject("event:4", 0, b"{}", "cloud_refused"))
    assert (stream.acked_seq, stream.settled_seq) == (3, 4)
    assert outbox.next_items(store, stream, 1)[0].seq == 5
    assert outbox.pending_events(store) == 6
    assert store.db.execute("SELECT reason FROM quarantine").fetchall() == [("cloud_refused",)]


def test_a_rewind_offers_again_what_the_cloud_lost(store: Store) -> None:
    """Events behind the mark, all records and own counters go again; the feed starts over."""
    stream = acked(store, enrolled(store), 9)
    with store.transaction():
        state.put(store, outbox.CURSOR, "5-x")
        for row in counters.pending(store, 10):
            counters.mark_pushed(store, row, "1-x")
        records.edit(store, "session", "s", {"score": 1})
        records.applied(store, records.pending(store, 1)[0], "2-x")
    back = outbox.rewind(store, stream, 4, "aa" * 16)
    assert outbox.next_items(store, back, 1)[0].seq == 5
    assert state.get(store, outbox.CURSOR) is None
    assert counters.pending_count(store) == 1
    assert [item.rev for item in records.pending(store, 10)] == [None]


def test_a_fork_moves_what_was_not_acknowledged_to_the_new_id(store: Store) -> None:
    """Acknowledged events keep the old id; the rest has the new one, in a stream of its own, from 1 on."""
    acked(store, enrolled(store), 6)
    with store.transaction():
        state.put(store, outbox.CURSOR, "5-x")
    stream = outbox.fork(store, B)
    assert totals(store) == {A: 6, B: 4}
    assert [item.seq for item in outbox.next_items(store, stream, 100)] == [1, 2, 3, 4]
    assert state.get(store, outbox.CURSOR) is None
    record(store, 1)
    assert totals(store) == {A: 6, B: 5}


def test_another_login_in_the_same_cloud_offers_all_and_gives_away_nothing(store: Store) -> None:
    """The old id keeps what was acknowledged under it until the cloud says that it has it under no id."""
    acked(store, enrolled(store), 6)
    stream = outbox.enrol(store, B, CLOUD)
    assert totals(store) == {A: 6, B: 4}
    assert outbox.pending_events(store) == 10
    outbox.acknowledge(store, stream, Settled(10, "ff" * 16, [1, 7, 8, 9, 10], {A: [2, 3, 4, 5, 6]}))
    assert totals(store) == {A: 5, B: 5}


def test_a_login_elsewhere_takes_everything_along(store: Store) -> None:
    """In another cloud the old id means nothing: all own events and counters get the new one."""
    acked(store, enrolled(store), 6)
    outbox.enrol(store, B, "elsewhere")
    assert (totals(store), outbox.pending_events(store)) == ({B: 10}, 10)


def test_positions_that_retention_emptied_are_left_out(store: Store) -> None:
    """The items keep their seq: a seq that is not sent never will be."""
    stream = enrolled(store)
    store.db.execute("DELETE FROM event WHERE pos IN (1, 2, 5)")
    assert [item.seq for item in outbox.next_items(store, stream, 4)] == [3, 4, 6, 7]


def test_many_pending_events_are_counted_without_a_scan(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound the distance of the positions is the answer."""
    monkeypatch.setattr(outbox, "COUNT_MAX", 3)
    monkeypatch.setattr(outbox, "_COUNT", "SELECT count(*) FROM (SELECT 1 FROM event WHERE pos > ? LIMIT 3)")
    enrolled(store)
    assert outbox.pending_events(store) == 10


def test_nothing_of_an_acknowledgement_stays_when_it_cannot_commit(store: Store) -> None:
    """A failure in the middle leaves the mark, the owners and the quarantine as they were."""
    stream = enrolled(store)
    before = totals(store)
    store.db.execute(
        "CREATE TRIGGER no BEFORE INSERT ON state WHEN new.key = 'stream_settled' BEGIN SELECT raise(ABORT, 'no'); END"
    )
    with pytest.raises(sqlite3.IntegrityError):
        outbox.acknowledge(store, stream, Settled(5, "ff" * 16, [1, 2], {B: [3]}, [Reject("x", 0, b"", "r")]))
    assert (outbox.find(store), totals(store)) == (stream, before)
    assert store.db.execute("SELECT count(*) FROM quarantine").fetchone() == (0,)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(1, 5)),
        st.tuples(st.just("ack"), st.integers(0, 30)),
        st.tuples(st.just("elsewhere"), st.integers(0, 30)),
        st.tuples(st.just("rewind"), st.integers(0, 30)),
        st.tuples(st.just("fork"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(steps=steps)
def test_no_step_loses_or_doubles_an_event(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Sent or waiting, every event is in the store once, and counters say which are this installation's."""
    path: Path = tmp_path_factory.mktemp("law") / "store.db"
    store = Store.open(path, clock=FakeClock())
    stream = outbox.enrol(store, A, CLOUD)
    made = 0
    for step, (what, n) in enumerate(steps):
        last = outbox.last_seq(store, stream)
        seq = min(max(n, stream.acked_seq), last)
        new = range(stream.acked_seq + 1, seq + 1)
        match what:
            case "record":
                record(store, n)
                made += n
            case "ack" if new:
                stream = acked(store, stream, seq)
            case "elsewhere" if new:
                stream = outbox.acknowledge(store, stream, Settled(seq, "ff" * 16, (), {"c" * 32: list(new)}))
            case "rewind":
                stream = outbox.rewind(store, stream, min(n, stream.acked_seq), "ff" * 16)
            case "fork":
                stream = outbox.fork(store, DeviceId(f"{step:032x}"))
            case _:
                continue
    waiting = outbox.next_items(store, stream, 1000)
    assert [item.seq for item in waiting] == list(range(stream.acked_seq + 1, outbox.last_seq(store, stream) + 1))
    assert store.db.execute("SELECT count(*), count(DISTINCT id) FROM event").fetchone() == (made, made)
    assert store.db.execute(_OWN_EVENTS).fetchone() == (sum(totals(store).values()),)
    assert store.db.execute("SELECT coalesce(sum(n), 0) FROM rollup").fetchone() == (made,)
    store.close()
