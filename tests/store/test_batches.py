"""Which imported events count: what the records decide, and everything that is kept added up because of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd import import_batch
from metricsd.ids import EventId
from metricsd.protocol import FieldValue, RecordState
from metricsd.store import batches, counters, events, records, retracted, state
from metricsd.store.connection import Store
from metricsd.store.records import Version
from metricsd.store.retention import fold
from tests.analytics.support import item, put, set_batch, set_selection
from tests.analytics.test_totals_equal_events import do, steps
from tests.fakes import START_US, FakeClock

DERIVED = (
    "SELECT t.text FROM retracted_batch AS b JOIN term AS t ON t.id = b.batch ORDER BY 1",
    "SELECT * FROM retracted_total ORDER BY 1, 2",
    "SELECT e.id, t.text FROM event AS e LEFT JOIN term AS t ON t.id = e.batch ORDER BY 1",
    "SELECT * FROM rollup ORDER BY 1, 2, 3, 4, 5, 6, 7",
    "SELECT * FROM day_total ORDER BY 1, 2, 3, 4, 5",
    "SELECT * FROM hour_total ORDER BY 1, 2, 3, 4, 5",
    "SELECT value FROM state WHERE key = 'retracted_events' AND value != 0",
)


def derived(store: Store) -> list[list[Any]]:
    return [store.db.execute(sql).fetchall() for sql in DERIVED]


def batches_of(store: Store) -> dict[str, str]:
    """Return {id: the name it is kept under} of the imported events."""
    sql = "SELECT e.id, t.text FROM event AS e JOIN term AS t ON t.id = e.batch"
    return {event_id.hex(): name for event_id, name in store.db.execute(sql)}


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=1, max_size=14), st.booleans())
def test_what_is_kept_added_up_is_what_making_it_anew_gives(history: list[tuple[str, Any]], folded: bool) -> None:
    """After any history of events, switches of batches and of selections, corrections and folds."""
    with tempfile.TemporaryDirectory() as folder:
        clock = FakeClock()
        store = Store.open(Path(folder) / "store.db", clock=clock)
        for number, (what, value) in enumerate(history):
            if folded and number == len(history) // 2:
                clock.jump(4 * 86400)
                fold(store, days=3, synced_through=None)
            do(store, what, value)
        before = derived(store)
        with store.transaction():
            batches.rebuild(store)
        assert derived(store) == before
        kept = set(store.db.execute("SELECT batch FROM retracted_batch").fetchall())
        sql = "SELECT batch, count(*) FROM event WHERE batch IS NOT NULL GROUP BY batch"
        rows = sum(n for batch, n in store.db.execute(sql) if (batch,) in kept)
        assert state.get_int(store, batches.RETRACTED_EVENTS) == rows
        store.close()


def test_an_event_that_comes_after_its_selection_is_left_out(tmp_path: Path) -> None:
    """The record may be pulled before the events that it names, and the other way round."""
    first, second = (Store.open(tmp_path / f"{name}.db", clock=FakeClock()) for name in ("first", "second"))
    items = [item(n, batch="run.1", at=START_US + n) for n in range(4)]
    ids = [items[1].id, items[2].id]
    fields: dict[str, FieldValue] = {"active": False, **batches.selection_fields(ids)}
    put(first, items)
    for store in (first, second):
        with store.transaction():
            records.edit(store, "import_batch", batches.selection_name("run.1", ids), fields)
    put(second, items)
    assert batches_of(first) == batches_of(second)
    assert sorted(batches_of(first).values()).count("run.1") == 2
    for store in (first, second):
        assert state.get_int(store, batches.RETRACTED_EVENTS) == 2
        assert [row[2] for row in store.db.execute("SELECT * FROM retracted_total")] == [2]
    first.close()
    second.close()


def test_an_event_counts_unless_an_inactive_record_covers_it(tmp_path: Path) -> None:
    """Two selections of one event and the switch of its batch add up; each goes by itself."""
    store = Store.open(tmp_path / "store.db", clock=FakeClock())
    put(store, [item(n, batch="run.1", at=START_US + n, session="s") for n in range(3)])

    def hidden() -> int:
        return state.get_int(store, batches.RETRACTED_EVENTS)

    set_selection(store, "run.1", [0, 1], active=False)
    set_selection(store, "run.1", [1], active=False)
    assert hidden() == 2
    set_batch(store, "run.1", active=False)
    assert hidden() == 3
    set_selection(store, "run.1", [0, 1], active=True)
    set_batch(store, "run.1", active=True)
    assert hidden() == 1
    set_selection(store, "run.1", [1], active=True)
    assert (hidden(), retracted.read(store.db)) == (0, {})
    store.close()


def test_a_selection_that_is_none_covers_nothing(tmp_path: Path) -> None:
    """Records come from other devices as they are."""
    store = Store.open(tmp_path / "store.db", clock=FakeClock())
    put(store, [item(1, batch="run.1")])
    hostile: Sequence[Any] = ("", "%%%", "YQ==", 7, ["x"], "A" * 16_384)
    for number, only in enumerate(hostile):
        with store.transaction():
            records.edit(store, "import_batch", f"run.1!{number}", {"active": False, "only": only})
    assert state.get_int(store, batches.RETRACTED_EVENTS) == 0
    with store.transaction():
        records.edit(store, "import_batch", "!", {"active": False})
        records.edit(store, "import_batch", "run.1!!", {}, delete=True)
    assert list(batches_of(store).values()) == ["run.1"]
    store.close()


def test_names_of_selections_follow_from_their_content() -> None:
    """So two devices that take back the same events write one record, and different ones never share a name."""
    one, two = EventId(bytes(16)), EventId(bytes([1] * 16))
    assert batches.selection_name("r.1", [one, two]) == batches.selection_name("r.1", [two, one])
    assert batches.selection_name("r.1", [one]) != batches.selection_name("r.1", [two])
    assert import_batch.named_by(batches.selection_fields([two, one])) == [one, two]
    full = batches.selection_fields([EventId(n.to_bytes(16, "big")) for n in range(batches.NAMED_MAX)])
    assert len(full["only"]) <= records.VALUE_BYTES_MAX
    assert import_batch.base_of(batches.selection_name("r.1", [one])) == "r.1" == import_batch.base_of("r.1")


def test_readers_take_back_what_the_counters_counted(tmp_path: Path) -> None:
    """Every kind that a counter knows is taken back by the same amount, whatever else it is."""
    store = Store.open(tmp_path / "store.db", clock=FakeClock())
    kinds = ("session_started", "prompt_submitted", "turn_ended", "turn_failed", "subagent_ended", "context_compacted",
             "tool_denied", "tool_used", "session_ended")  # fmt: skip
    put(store, [item(n, kind=kind, session="s", batch="run.1", outcome="failed", duration_ms=7, lines_added=2,
                     lines_removed=1) for n, kind in enumerate(kinds)])  # fmt: skip
    names = ", ".join(counters.NUMBERS)
    (counted,) = store.db.execute(f"SELECT {names} FROM session_counters").fetchall()
    set_batch(store, "run.1", active=False)
    (kinds_of,) = retracted.read(store.db).values()
    assert {name: n for name, n in zip(counters.NUMBERS, counted, strict=True) if n} == retracted.taken(kinds_of)
    store.close()


def test_the_cloud_decides_whose_import_an_event_is_of(tmp_path: Path) -> None:
    """Two devices import one folder: the second one keeps the first one's batch, so one rollback counts for both."""
    store = Store.open(tmp_path / "store.db", clock=FakeClock())
    items = [item(n, batch="mine.1", at=START_US + n, session="s") for n in range(3)]
    put(store, items)
    ids = [one.id for one in items]
    with store.transaction():
        batches.adopt(store, {ids[0]: "theirs.4", ids[1]: None, ids[2]: "mine.1"})
    assert sorted(batches_of(store).values()) == ["mine.1", "theirs.4"]
    set_batch(store, "theirs.4", active=False)
    assert state.get_int(store, batches.RETRACTED_EVENTS) == 1
    store.close()


def test_a_record_of_the_cloud_switches_as_an_edit_does(tmp_path: Path) -> None:
    """Whatever writes the record: the events follow in its transaction, and not without it."""
    store = Store.open(tmp_path / "store.db", clock=FakeClock())
    put(store, [item(1, batch="run.1")])
    stamp = "000000000001-0000-other"
    remote = RecordState(type="import_batch", id="run.1", rev="r1", device="other", fields={"active": False}, stamps={})
    with store.transaction():
        records.pulled(store, remote)
    assert state.get_int(store, batches.RETRACTED_EVENTS) == 1
    assert records.get(store, "import_batch", "run.1").version == Version(fields={"active": False}), stamp  # type: ignore[union-attr]
    try:
        with store.transaction():
            records.edit(store, "import_batch", "run.1", {"active": True})
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert state.get_int(store, batches.RETRACTED_EVENTS) == 1
    with store.transaction():
        records.edit(store, "import_batch", "run.1", {"active": True})
    assert state.get_int(store, batches.RETRACTED_EVENTS) == 0
    assert events.last_pos(store) == 1
    store.close()
