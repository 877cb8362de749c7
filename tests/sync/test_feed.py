"""The feed: what other devices did arrives once, and what cannot be goes to quarantine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from metricsd.ids import DeviceId
from metricsd.protocol import COUNTERS, Change, RecordState, WireEvent
from metricsd.store import events, feed, outbox, records, state
from metricsd.store.connection import Store
from tests.fakes import START_US
from tests.samples import make_item

A, B, C = (DeviceId(letter * 32) for letter in "abc")


def wire(n: int = 0, **changes: Any) -> WireEvent:
    item = make_item(n)
    values: dict[str, Any] = {
        "id": item.id.hex(), "at": item.event.at, "kind": "tool_used", "name": "PostToolUse", "app": "claude-code",
        "session": "s", "tool": "Read", "outcome": "ok", "duration_ms": 5,
    }  # fmt: skip
    return WireEvent(**(values | changes))


def event(n: int = 0, device: str = B, **changes: Any) -> Change:
    return Change(device=device, event=wire(n, **changes))


def counters_of(device: str, session: str = "s", n: int = 3, **changes: Any) -> Change:
    fields = {"started_at": START_US, "last_at": START_US, "events": n} | changes
    return Change(device=device, record=RecordState(
        type=COUNTERS, id=f"{device}/claude-code/{session}", rev="1-x", device=device, fields=fields))  # fmt: skip


def apply(store: Store, *items: Change | bytes, cursor: str = "9-x", only_records: bool = False) -> feed.Applied:
    raw = [msgspec.Raw(item if isinstance(item, bytes) else msgspec.json.encode(item)) for item in items]
    return feed.apply(store, raw, cursor, origin="https://cloud", only_records=only_records)


def counted(store: Store) -> int:
    return int(store.db.execute("SELECT coalesce(sum(events), 0) FROM session_counters").fetchone()[0])


def test_events_of_other_devices_arrive_under_their_device_with_the_cursor(store: Store) -> None:
    """A page applied twice changes nothing more."""
    outbox.enrol(store, A, "cloud")
    assert apply(store, event(0), event(1, C)).events == 2
    assert apply(store, event(0), event(1, C)).events == 0
    owners = store.db.execute("SELECT d.device_id, pos FROM event JOIN device AS d ON d.id = device ORDER BY pos DESC")
    assert owners.fetchall() == [(B, -1), (C, -2)]
    assert state.get(store, outbox.CURSOR) == "9-x"
    assert outbox.pending_events(store) == 0


def test_an_own_event_that_was_theirs_first_moves_to_them(store: Store) -> None:
    """Our counters give it up; theirs come with their record."""
    with store.transaction():
        events.insert(store, [make_item(n) for n in range(3)], device=events.own_device(store))
    outbox.enrol(store, A, "cloud")
    assert apply(store, event(1), counters_of(B, n=1)).events == 0
    assert counted(store) == 3
    assert store.db.execute("SELECT count(*) FROM event").fetchone() == (3,)


def test_own_counters_and_own_events_from_the_feed_are_ignored(store: Store) -> None:
    """Only ingest writes what is this device's."""
    outbox.enrol(store, A, "cloud")
    assert apply(store, event(0, A), counters_of(A, n=99)) == feed.Applied(0, 0, 0, 0)
    assert counted(store) == 0


def test_counters_of_an_earlier_id_of_ours_never_shrink(store: Store) -> None:
    """After a fork nobody pushes that row any more; the store that wrote it knows best."""
    with store.transaction():
        events.insert(store, [make_item(n) for n in range(3)], device=events.own_device(store))
    stream = outbox.enrol(store, A, "cloud")
    last = outbox.id_at(store, stream, 3)
    assert last is not None
    outbox.acknowledge(store, stream, outbox.Settled(3, last.hex(), [1, 2, 3]))
    outbox.fork(store, B)
    apply(store, counters_of(A, n=2))
    assert counted(store) == 3
    apply(store, counters_of(A, n=5))
    assert counted(store) == 5


def test_events_older_than_the_newest_fold_are_left_out(store: Store) -> None:
    """Whether they were counted can no longer be told."""
    with store.transaction():
        state.put(store, feed.FOLD_BEFORE, START_US + 500_000)
    assert apply(store, event(0), event(1)).events == 1


def test_a_records_only_pull_takes_no_events(store: Store) -> None:
    """Even if the cloud sends some."""
    assert apply(store, event(0), counters_of(B), only_records=True) == feed.Applied(0, 1, 0, 0)


HOSTILE = {
    "not an object": b"[1,2]",
    "wrong types": b'{"device":7}',
    "no id": event(id=""),
    "short id": event(id="ab" * 15),
    "not hex": event(id="zz" * 16),
    "before 1970": event(at=-1),
    "after 9999": event(at=2**62),
    "huge number": event(duration_ms=2**63),
    "negative number": event(lines_added=-1),
    "empty kind": event(kind=""),
    "long name": event(name="x" * 201),
    "terminal escape": event(tool="\x1b]0;owned\x07"),
    "many extras": event(extra={f"k{n}": n for n in range(17)}),
    "huge extra": event(extra={"k": 2**70}),
    "device is a path": event(device="../../etc"),
    "counters of another device": Change(device=B, record=RecordState(
        type=COUNTERS, id=f"{C}/claude-code/s", rev="1-x", device=B, fields={"events": 1})),
    "counters without a session": Change(device=B, record=RecordState(type=COUNTERS, id=B, rev="1-x", device=B)),
    "counters that are text": counters_of(B, events="many"),
    "counters below zero": counters_of(B, tool_calls=-5),
    "record without a revision": Change(device=B, record=RecordState(type="session", id="s", rev="", device=B)),
}  # fmt: skip


@pytest.mark.parametrize("item", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_item_goes_to_quarantine_and_the_stream_goes_on(store: Store, item: Change | bytes) -> None:
    """Its neighbours and the cursor are taken; a replay quarantines it once."""
    for _ in range(2):
        applied = apply(store, event(5), item, event(6))
        assert applied.rejected == 1
    assert store.db.execute("SELECT count(*) FROM event").fetchone() == (2,)
    rows = store.db.execute("SELECT file, reason FROM quarantine").fetchall()
    assert len(rows) == 1 and rows[0][0] == "https://cloud"
    assert state.get(store, outbox.CURSOR) == "9-x"


def test_a_conflict_in_a_page_is_counted_and_kept(store: Store) -> None:
    """The page is applied all the same."""
    with store.transaction():
        records.edit(store, "session", "s", {"score": 1})
    remote = RecordState(type="session", id="s", rev="1-x", device=B, fields={"score": 2})
    assert apply(store, Change(device=B, record=remote), event(0)) == feed.Applied(1, 1, 1, 0)
