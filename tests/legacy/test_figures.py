"""The older API's analytics and dashboard answers: recorded keys and types, true figures, the same over real totals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metricsd.analytics import overview
from metricsd.analytics.baseline import DEFAULT, baseline
from metricsd.analytics.indicators import indicators
from metricsd.legacy import figures
from metricsd.store import session_totals
from metricsd.store.calendar import days_in
from metricsd.store.connection import Store
from metricsd.store.summary import reading
from tests.analytics.support import item, put
from tests.legacy.golden import is_like, recordings

DAY_US = 86_400_000_000
MONDAY = 20_500 - (20_500 - 4) % 7
NOON_US = MONDAY * DAY_US + DAY_US // 2
MINUTE_US = 60_000_000


def recorded(path: str) -> Any:
    """Return the data of the first recording of a path."""
    return next(one["response"]["data"] for one in recordings("legacy_api.jsonl") if one["path"] == f"/api/v1/{path}")


def has_shape(expected: Any, found: Any) -> bool:
    """Return whether an answer has the recorded keys and types; numbers are numbers, items are like the first one."""
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return False
        if (
            expected
            and all(isinstance(value, int | float) for value in expected.values())
            and expected.keys() != found.keys()
        ):
            # A mapping from names to numbers has whatever names there are.
            return all(isinstance(value, int | float) for value in found.values())
        return expected.keys() == found.keys() and all(has_shape(value, found[key]) for key, value in expected.items())
    if isinstance(expected, list):
        return isinstance(found, list) and all(has_shape(expected[0], one) for one in found)
    if isinstance(expected, bool) or not isinstance(expected, int | float):
        return expected is None or type(expected) is type(found)
    return isinstance(found, int | float) and not isinstance(found, bool)


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, Any]:
    """Answers of two weeks: one good session on the Monday before, two today of which one is open."""
    store = Store.open(tmp_path / "store.db")
    store.days = days_in("UTC")
    number = 0

    def call(session: str, minute: int, day: int = 0, **changes: Any) -> None:
        nonlocal number
        number += 1
        at = NOON_US - day * DAY_US + minute * MINUTE_US
        put(store, [item(number, session=session, at=at, **({"duration_ms": 100} | changes))])

    for minute in range(0, 61, 2):
        call("good", minute, day=7, tool="Edit", lines_added=8)
    call("done", 0, tool="Read", outcome="failed")
    call("done", 30, tool="Bash", duration_ms=300)
    call("done", 30, kind="session_ended", tool=None, duration_ms=None)
    call("open", 10, tool="Read")
    store.close()
    with reading(tmp_path / "store.db", days=days_in("UTC")) as summary:
        days = (MONDAY - 13, MONDAY)
        cells = summary.cells("day", "kind", "tool", "bucket", days=days)
        sessions = session_totals.read(summary)
        usual = baseline([one for one in sessions if one.id == "good"])
        return {
            "analytics/productivity": figures.productivity(
                overview.productivity(sessions, cells, summary.days.of, usual)
            ),
            "analytics/tools": figures.tools(overview.tool_figures(cells, summary.hours(days))),
            "dashboard/metrics": figures.dashboard(
                overview.dashboard(sessions, cells, summary.days.of, MONDAY, usual), user="amy"
            ),
            "dashboard/indicators": figures.indicators(indicators(sessions[0], usual), now_ms=0),
            "dashboard/baseline": figures.baseline(usual),
        }


def test_answers_have_the_recorded_shape(answers: dict[str, Any]) -> None:
    """Same keys, same types, and JSON."""
    for path, answer in answers.items():
        assert has_shape(recorded(path), answer) or path == "dashboard/indicators", (path, answer)
        json.dumps(answer, allow_nan=False)
    assert answers["dashboard/indicators"].keys() == recorded("dashboard/indicators").keys()


def test_answers_are_true(answers: dict[str, Any]) -> None:
    """Where the older service had constants."""
    productivity = answers["analytics/productivity"]
    assert productivity["tool_usage_patterns"] == {"Edit": 91.2, "Read": 5.9, "Bash": 2.9}
    assert (productivity["focus_time"], productivity["session_efficiency"]) == (90, 0.97)
    assert [(one["date"], one["sessions"], one["tools_used"]) for one in productivity["productivity_trends"]] == [
        ("2026-02-16", 2, ["Bash", "Read"]),
        ("2026-02-09", 1, ["Edit"]),
    ]
    tools = answers["analytics/tools"]
    assert tools["top_tools"][0] == {"name": "Edit", "count": 31, "averageTime": 100}
    assert tools["error_rates"] == {"Edit": 0, "Read": 0.5, "Bash": 0}
    assert tools["usage_patterns"]["hourly"][12:14] == [33, 1]
    assert tools["usage_patterns"]["daily"] == [34, 0, 0, 0, 0, 0, 0]
    board = answers["dashboard/metrics"]
    assert board["current_session"] | {"productivity_score": 0} == {
        "session_id": "open", "start_time": "2026-02-16T12:10:00.000Z", "user": "amy", "productivity_score": 0,
    }  # fmt: skip
    assert (board["today_stats"]["sessions"], board["today_stats"]["tools_used"]) == (2, ["Bash", "Read"])
    assert board["today_stats"]["focus_time_minutes"] == 30
    assert [(one["day"], one["sessions"]) for one in board["weekly_trends"]] == [("Mon", 2)]
    assert board["top_tools"] == [{"name": "Read", "usage": 66.7}, {"name": "Bash", "usage": 33.3}]
    assert board["productivity_trend"] == "declining"


@pytest.mark.parametrize("path", ["dashboard/indicators", "dashboard/baseline"])
def test_without_sessions_the_recorded_defaults_are_answered(path: str) -> None:
    """Exactly, placeholders aside."""
    found = (
        figures.baseline(DEFAULT)
        if path.endswith("baseline")
        else figures.indicators(indicators(None, DEFAULT), now_ms=0)
    )
    assert is_like(recorded(path), found), found


def test_an_empty_store_has_whole_answers() -> None:
    """Zeros and empty lists, no division by zero."""
    assert figures.productivity(overview.productivity([], [], lambda at: 0))["productivity_trends"] == []
    assert figures.tools(overview.tool_figures([], []))["usage_patterns"] == {"hourly": [0] * 24, "daily": [0] * 7}
    board = figures.dashboard(overview.dashboard([], [], lambda at: 0, 0), user="")
    assert (board["current_session"], board["productivity_trend"]) == (None, "stable")
