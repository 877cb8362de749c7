"""Real daemons, a real cloud, loopback: how soon a change on one laptop is on another, with real time and without."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.realtime import end_session, pair
from tests.homes import Home, opened, tool_use, until

CHANGES = 5
MEDIAN_S_MAX = 1.0


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        pair(one, two)
        yield one, two


def test_ended_sessions_failures_and_edits_are_on_the_other_laptop_within_a_second(homes: tuple[Home, Home]) -> None:
    """In the median, both ways, though the interval is five minutes."""
    one, two = homes
    took = []
    for number in range(CHANGES):
        here, there = (one, two) if number % 2 else (two, one)
        time.sleep(1.1)  # the gap that keeps pushes at one a second; what is measured is one change, not a queue
        took.append(end_session(here, there, f"s-{number}"))
    assert statistics.median(took) < MEDIAN_S_MAX, took
    assert [home.status()["sync"]["realtime"] for home in homes] == [True, True]
    assert "in real time" in two.run("status").stdout
    _failures_and_edits(one, two)


def _failures_and_edits(one: Home, two: Home) -> None:
    """A failed tool goes at once, with what waited before it, and so does what a command edits in the store."""
    before = two.events()
    one.capture("PostToolUse", tool_use(1))
    failed = {**tool_use(2), "hook_event_name": "PostToolUseFailure", "error": "x", "is_interrupt": False}
    one.capture("PostToolUseFailure", failed)
    until(lambda: two.events() == before + 2, 5.0)
    one.ok("session", "edit", "s-1", "--set", "description=hello")
    until(lambda: _description(two) == "hello", 5.0)


def test_without_real_time_changes_come_by_the_interval(tmp_path: Path) -> None:
    """Off by the setting: no stream, no early push, and everything there after an interval all the same."""
    settings = {"METRICSD_SYNC_REALTIME": "false", "METRICSD_SYNC_INTERVAL_S": "1.5"}
    with opened(tmp_path / "one", **settings) as one, opened(tmp_path / "two", **settings) as two:
        pair(one, two)
        assert "switched off" in two.status()["sync"]["realtime_reason"]
        # Two rounds, each within an interval: one to send, one to fetch.
        assert end_session(one, two, "s-1") < 2 * 1.5 + 3.0
        assert "real time" not in two.run("status").stdout


def _description(home: Home) -> object:
    shown = home.run("session", "show", "s-1", "--json")
    return json.loads(shown.stdout).get("description") if shown.returncode == 0 else None
