"""Events in the store: once, with totals that always equal a full count."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.ids import EventId
from metricsd.model import Event, Kind
from metricsd.store import counters, events, state
from metricsd.store.connection import Store
from metricsd.store.events import Identified, insert, locate, move, own_device, read_own
from metricsd.store.rollups import bucket_of
from tests.fakes import START_US, FakeClock
from tests.samples import any_events, any_items, make_event, make_item, names


def put(store: Store, items: list[Identified], device: int | None = None) -> events.Inserted:
    with store.transaction():
        return insert(store, items, device=own_device(store) if device is None else device)


def totals_of(store: Store) -> dict[Any, list[int]]:
    """What the rollups say, by (device, type, tool, bucket)."""
    found: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for device, kind, tool, bucket, *values in store.db.execute(
        "SELECT device, type, tool, bucket, n, failed, duration_ms, lines_added, lines_removed FROM rollup"
    ):
        for index, value in enumerate(values):
            found[device, kind, tool, bucket][index] += value
    return dict(found)


def counted(store: Store) -> dict[Any, list[int]]:
    """The same by a full scan of the events."""
    found: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for device, kind, tool, outcome, ms, added, removed in store.db.execute(
        "SELECT device, type, tool, outcome, duration_ms, lines_added, lines_removed FROM event"
    ):
        values = (1, 1 if outcome else 0, ms or 0, added or 0, removed or 0)
        for index, value in enumerate(values):
            found[device, kind, tool or 0, bucket_of(ms)][index] += value
    return dict(found)


def own_counters(store: Store) -> dict[str, Counter[str]]:
    sql = f"SELECT s.session_id, {', '.join(counters.NUMBERS)} FROM session_counters JOIN session AS s ON s.id = session WHERE device = ?"
    return {
        row[0]: Counter(dict(zip(counters.NUMBERS, row[1:], strict=True)))
        for row in store.db.execute(sql, (own_device(store),))
    }


@given(any_events())
def test_an_event_comes_back_as_it_went_in(tmp_path_factory: pytest.TempPathFactory, event: Event) -> None:
    """decode(encode(x)) == x through interned terms, packed call ids and JSON."""
    store = Store.open(tmp_path_factory.mktemp("s") / "store.db", clock=FakeClock())
    put(store, [Identified(EventId(b"x" * 16), event)])
    assert read_own(store, 0, 10) == [(1, b"x" * 16, event)]
    store.close()


@given(any_items(), any_items())
@settings(max_examples=40)
def test_ids_are_stored_once_and_totals_equal_a_full_scan(
    tmp_path_factory: pytest.TempPathFactory, first: list[Identified], second: list[Identified]
) -> None:
    """Replays and repeats within a batch add nothing, to rows, rollups or counts."""
    store = Store.open(tmp_path_factory.mktemp("s") / "store.db", clock=FakeClock())
    for items in (first, second, first):
        put(store, items)
    ids = {item.id for item in first + second}
    rows = store.db.execute("SELECT pos FROM event ORDER BY pos").fetchall()
    assert [row[0] for row in rows] == list(range(1, len(ids) + 1))
    assert totals_of(store) == counted(store)
    assert state.get_int(store, "live_events") == len(ids)
    sessions: Counter[str] = Counter(event.session for _, _, event in read_own(store, 0, 1000) if event.session)
    by_session: Counter[str] = Counter()
    for (session_id,), n in (
        ((row[0],), row[1])
        for row in store.db.execute(
            "SELECT session_id, sum(c.events) FROM session_counters AS c JOIN session AS s ON s.id = session GROUP BY 1"
        )
    ):
        by_session[session_id] += n
    assert by_session == sessions
    store.close()


def test_many_events_at_once_are_all_there_and_some_of_them_twice_too(store: Store) -> None:
    """More than one statement takes, with a rest; each in its hour."""
    hour_us = 3600 * 1_000_000
    items = [make_item(n, at=START_US + n * hour_us // 7) for n in range(211)]
    assert put(store, items[100:107]) == (7, 0)
    assert put(store, items) == (204, 7)
    found = [(event_id, event) for _, event_id, event in read_own(store, 0, 1000)]
    assert found == [*items[100:107], *items[:100], *items[107:]]
    hours = Counter(store.days.slot(item.event.at) for item in items)
    assert dict(store.db.execute("SELECT day * 24 + hour, n FROM hour_total")) == hours
    assert totals_of(store) == counted(store)


def test_positions_go_on_after_a_rollback_without_a_gap(store: Store) -> None:
    """A failed transaction leaves neither rows nor cached terms nor used positions."""
    put(store, [make_item(0)])
    with pytest.raises(RuntimeError), store.transaction():
        insert(store, [make_item(1, tool="NeverSeen", session="gone")], device=own_device(store))
        raise RuntimeError
    put(store, [make_item(2, tool="NeverSeen", session="gone")])
    rows = read_own(store, 0, 10)
    assert [pos for pos, _, _ in rows] == [1, 2]
    assert rows[1][2].tool == "NeverSeen"
    assert rows[1][2].session == "gone"


def test_events_of_other_devices_have_negative_positions_and_no_own_counters(store: Store) -> None:
    """Pulled events never enter the outbox, and their counters come from their own device."""
    with store.transaction():
        other = events.device_row(store, "other")
    put(store, [make_item(0)])
    put(store, [make_item(1), make_item(2)], device=other)
    assert {pos for pos, _ in locate(store, [make_item(1).id, make_item(2).id]).values()} == {-1, -2}
    assert len(read_own(store, 0, 10)) == 1
    assert own_counters(store)["s"]["events"] == 1
    assert state.get_int(store, "live_events") == 3


def test_moved_events_count_once_for_their_new_device(store: Store) -> None:
    """Rollups and counters follow the event; the sum over devices stays the number of events."""
    put(store, [make_item(n, lines_added=2) for n in range(4)])
    with store.transaction():
        other = events.device_row(store, "other")
        move(store, [1, 2], other)
    assert own_counters(store)["s"]["events"] == 2
    assert own_counters(store)["s"]["tool_ms"] == 12 + 13
    assert totals_of(store) == counted(store)
    with store.transaction():
        move(store, [3, 4], other)
    assert own_counters(store) == {}
    with store.transaction():
        move(store, [1, 2, 3, 4], own_device(store))
    assert own_counters(store)["s"]["events"] == 4
    assert totals_of(store) == counted(store)


@given(
    st.none()
    | names
    | st.from_regex(r"toolu_[0-9A-Za-z]{0,30}", fullmatch=True)
    | st.from_regex(r"toolu_([0-9a-f]{2}){1,12}", fullmatch=True)
)
def test_a_packed_call_id_comes_back(call: str | None) -> None:
    """Packing loses nothing, whatever an id looks like."""
    assert events.unpack_call(events.pack_call(call)) == call


def test_a_hexadecimal_call_id_takes_half_its_bytes() -> None:
    """The packing is worth its lines: most of an event's size is its call id."""
    packed = events.pack_call("toolu_0123456789abcdef0123456789")
    assert packed is not None
    assert len(packed) == 14


class TestSessionCounters:
    """Times and ends, whatever order the events arrive in."""

    def row(self, store: Store) -> dict[str, Any]:
        found = store.db.execute(f"SELECT {', '.join(counters.FIELDS)} FROM session_counters").fetchall()
        assert len(found) == 1
        return dict(zip(counters.FIELDS, found[0], strict=True))

    @given(st.permutations(range(4)), st.integers(1, 4))
    @settings(max_examples=30)
    def test_the_order_of_arrival_does_not_matter(
        self, tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: int
    ) -> None:
        """Minimum, maximum and sums: batches in any order give one row."""
        items = [
            make_item(
                0, kind=Kind.SESSION_STARTED, tool=None, outcome=None, duration_ms=None, model="m", reason="startup"
            ),
            make_item(1),
            make_item(2, outcome="failed"),
            make_item(3, kind=Kind.SESSION_ENDED, tool=None, outcome=None, duration_ms=None, reason="clear"),
        ]
        store = Store.open(tmp_path_factory.mktemp("s") / "store.db", clock=FakeClock())
        put(store, [items[i] for i in order[:cut]])
        put(store, [items[i] for i in order[cut:]])
        row = self.row(store)
        assert row["started_at"] == START_US
        assert row["end_at"] == START_US + 3_000_000
        assert row["end_reason"] == "clear"
        assert row["model"] == "m"
        assert (row["events"], row["tool_calls"], row["tool_failures"], row["tool_ms"]) == (4, 2, 1, 23)
        assert row["last_at"] == START_US + 2_000_000
        store.close()

    def test_silence_ends_a_session_and_a_later_event_reopens_it(self, store: Store, clock: FakeClock) -> None:
        """The inferred end is void as soon as something newer is there."""
        put(store, [make_item(0, at=clock.now_us())])
        assert counters.close_idle(store, 60_000_000) == 0
        clock.advance(61)
        assert counters.close_idle(store, 60_000_000) == 1
        assert counters.close_idle(store, 60_000_000) == 0
        assert self.row(store)["idle_at"] == self.row(store)["last_at"]
        put(store, [make_item(1, at=clock.now_us())])
        row = self.row(store)
        assert row["idle_at"] < row["last_at"]

    def test_a_row_that_changed_while_it_was_pushed_stays_pending(self, store: Store) -> None:
        """An acknowledgement covers what was sent, not what came after."""
        put(store, [make_item(0)])
        (sent,) = counters.pending(store, 10)
        put(store, [make_item(1)])
        with store.transaction():
            counters.mark_pushed(store, sent, "1-aa")
        (again,) = counters.pending(store, 10)
        assert again.fields()["events"] == 2
        with store.transaction():
            counters.mark_pushed(store, again, "2-aa")
        assert counters.pending(store, 10) == []
        assert counters.pending_count(store) == 0


def test_an_event_with_a_lone_surrogate_is_refused_not_stored_in_part(store: Store) -> None:
    """What SQLite cannot hold raises before anything of the batch is kept."""
    with pytest.raises(UnicodeEncodeError):
        put(store, [make_item(0), make_item(1, tool="\ud800")])
    assert read_own(store, 0, 10) == []
    assert make_event(0).tool == "Bash"


def test_the_store_is_private(tmp_path: Path) -> None:
    """Nobody else on the machine reads a user's history."""
    store = Store.open(tmp_path / "deep" / "store.db")
    assert (tmp_path / "deep" / "store.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700
    store.close()
