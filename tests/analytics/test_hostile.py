"""Numbers and records of strangers: no report stumbles, no sum overflows, nothing wedges the store."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.analytics import overview, periods, tools
from metricsd.cli.report import KINDS
from metricsd.legacy import figures
from metricsd.store import records, session_totals
from metricsd.store.connection import Store
from metricsd.store.ingest import Ingest
from metricsd.store.retention import fold
from metricsd.store.summary import ALL_DAYS, reading
from metricsd.totals import COUNTED_MAX
from tests.analytics.support import added_up, item, put, set_batch
from tests.fakes import FakeClock
from tests.homes import Home

HUGE = 2**63 - 1

values = (
    st.none() | st.booleans() | st.integers(-(2**63) + 1, HUGE) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.lists(st.text("ab", max_size=3), max_size=3)
)  # fmt: skip
metric_fields = st.dictionaries(
    st.sampled_from(
        [
            "app",
            "session",
            "tool",
            "started_at",
            "ended_at",
            "execution_count",
            "error_count",
            "success_rate",
            "total_duration_ms",
            "batch",
        ]
    ),
    values,
)
session_fields = st.dictionaries(
    st.sampled_from(
        [
            "started_at",
            "ended_at",
            "end_reason",
            "project",
            "branch",
            "description",
            "tags",
            "score",
            "focus_time_ms",
            "interruptions_count",
        ]
    ),
    values,
)


@settings(max_examples=80)
@given(st.lists(metric_fields, max_size=3), st.lists(session_fields, max_size=2), st.booleans())
def test_records_of_any_shape_are_reported(
    metrics: list[dict[str, Any]], noted: list[dict[str, Any]], deleted: bool
) -> None:
    """Another device's record is stored as it came; reports take from it what makes sense."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store.db", clock=FakeClock())
        put(store, [item(1, session="0")])
        with store.transaction():
            for number, fields in enumerate(metrics):
                records.edit(store, "tool_metric", f"m{number}", fields)
            for number, fields in enumerate(noted):
                records.edit(store, "session", f"claude-code/{number}", fields)
            records.edit(store, "import_batch", "b", {"active": "no"} if deleted else {"active": []})
        store.close()
        with reading(Path(folder) / "store.db") as summary:
            cells = summary.cells("day", "kind", "tool", "bucket")
            hours = summary.hours()
            sessions = session_totals.read(summary)
            starts = session_totals.starts(summary)
            assert sum(starts.values()) <= len(sessions)
            found = periods.daily(cells, starts)
            for one in found:
                assert ALL_DAYS[0] <= one.day <= ALL_DAYS[1]
            answers = [
                figures.productivity(overview.productivity(sessions, cells, summary.days.of)),
                figures.tools(overview.tool_figures(cells, hours)),
            ]
            json.dumps([found, tools.by_project(summary.cells("project", "kind")), answers], allow_nan=False)


def test_huge_numbers_of_one_event_cannot_overflow_a_sum(tmp_path: Path) -> None:
    """Two calls of 2^63 - 1 ms used to be more than a sum can hold, and the store refused them for ever."""
    clock = FakeClock()
    store = Store.open(tmp_path / "store.db", clock=clock)
    ingest = Ingest(store)
    huge = {"duration_ms": HUGE, "lines_added": HUGE, "lines_removed": HUGE, "batch": "b"}
    ingest.take([item(1, **huge), item(2, **huge)])
    ingest.take([item(3, **huge)])

    def report() -> list[int]:
        with reading(tmp_path / "store.db") as summary:
            assert added_up(summary.cells("day", "bucket")) == added_up(summary.scanned("day", "bucket"))
            (found,) = added_up(summary.cells()).values()
            (one,) = session_totals.read(summary)
            assert (one.tool_ms, one.lines_added, one.lines_removed) == tuple(found[2:])
        return found

    assert report() == [3, 0, *[3 * COUNTED_MAX] * 3]
    ingest.take([item(4)])
    set_batch(store, "b", active=False)
    assert report() == [1, 0, 10, 0, 0]
    clock.jump(40 * 86400)
    assert fold(store, days=30, synced_through=None) == 4
    with reading(tmp_path / "store.db") as summary:
        assert [cell.n for cell in summary.cells()] == [1]
    store.close()


def test_every_report_of_a_hostile_home_is_printed(tmp_path: Path) -> None:
    """Text, JSON and CSV, exit code 0, nothing on stderr."""
    home = Home(tmp_path)
    store = Store.open(home.paths.store)
    put(
        store,
        [item(1, at=253_402_300_799_000_000, tool="\u202e\x07", project="\U0001f600"), item(2, at=0, session="\n")],
    )
    with store.transaction():
        records.edit(
            store,
            "tool_metric",
            "m",
            {"app": "x", "started_at": HUGE, "execution_count": HUGE, "tool": "t", "total_duration_ms": HUGE},
        )
        records.edit(store, "session", "x/y", {"started_at": HUGE, "ended_at": 1, "tags": "no list"})
    store.close()
    for arguments in (
        *(["report", kind, *form] for kind in KINDS for form in ([], ["--json"], ["--csv"])),
        ["today"],
        ["today", "--json"],
    ):
        done = home.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done)
        if "--json" in arguments:
            json.loads(done.stdout)
    assert home.run("export").returncode == home.run("export", "--csv").returncode == 0
