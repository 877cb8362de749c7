"""Anything may stand in those folders: it is an event, a note, or a reason; never the end of the tail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metricsd.decode.older_hooks import read_document, read_line
from metricsd.errors import LineRejected
from metricsd.ids import Occurrences
from metricsd.lines import Unit
from metricsd.older.lines import Adding
from metricsd.older.sessions import OlderSessions
from metricsd.sink import REFUSALS, take_each
from metricsd.store.connection import Store
from metricsd.store.ingest import Ingest
from tests.fakes import FakeClock
from tests.older.support import call, start, summary

AT = "2026-01-05T08:00:00Z"
STORED = {
    "id": "m1", "toolName": "Read", "sessionId": "s", "createdAt": AT, "executionCount": 3, "totalDurationMs": "7",
    "sessionStart": AT, "metadata": {"productivityMetrics": {"x": 1}}, "productivityScore": 50,
}  # fmt: skip
GOOD: list[dict[str, Any]] = [
    call("s", AT, enhanced_activity={"id": "a"}),
    call("default-session", AT),
    start("s", AT) | {"productivity_metrics": {"focus_blocks": 1}},
    summary("s", AT, AT) | {"metrics": {"commands_executed": None}},
    {"event": "session_end", "timestamp": AT, "session_id": "default-session", "productivity_score": 1},
    STORED,
    {name: value for name, value in STORED.items() if name != "toolName"},
]
TIMES = st.sampled_from(
    [AT, "2026-02-30T00:00:00Z", "9999-12-31T23:59:59+14:00", "0001-01-01", "", "1970-01-01T00:00Z"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False)
    | st.text(max_size=30) | TIMES | st.just("x" * 5000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store.open(tmp_path_factory.mktemp("hostile") / "store.db", clock=FakeClock())
    yield made
    made.close()


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """Return a line or document that is nearly right, some of whose values are anything."""
    document = dict(draw(st.sampled_from(GOOD)))
    for name in draw(st.lists(st.sampled_from(sorted(document)), max_size=3)):
        document[name] = draw(VALUES)
    data = json.dumps(document).encode()
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=300)
@given(data=documents(), as_line=st.booleans())
def test_anything_is_taken_or_refused_with_a_reason(store: Store, data: bytes, as_line: bool) -> None:
    """What the store cannot hold goes to quarantine, whatever lies beside it."""
    unit = Unit([], [], [])
    adding = Adding(unit, Occurrences(), OlderSessions(), "file")
    try:
        found = read_line(data) if as_line else read_document(data)
    except LineRejected as rejected:
        assert rejected.reason
        return
    if found is not None:
        adding.add(found)
    adding.finish()
    ingest = Ingest(store)
    try:
        ingest.take(unit.items, beside=unit.beside)
    except REFUSALS:
        taken = take_each(ingest, unit.items, unit.rejects, unit.beside, name="file")
        assert taken.rejected


@pytest.mark.parametrize("depth", [100, 900, 5000, 100_000])
def test_any_depth_is_taken_or_refused(store: Store, tmp_path: Path, depth: int) -> None:
    """Neither reading nor keeping it ends the process."""
    body = "[" * depth + "]" * depth
    data = f'{{"session_id": "deep", "start_time": "{AT}", "productivity_metrics": {{"x": {body}}}}}'.encode()
    unit = Unit([], [], [])
    adding = Adding(unit, Occurrences(), OlderSessions(), "file")
    try:
        found = read_document(data)
    except LineRejected as rejected:
        assert rejected.reason == "too_deep"
        return
    adding.add(found)
    adding.finish()
    assert take_each(Ingest(store), unit.items, unit.rejects, unit.beside, name="file").added <= 1
