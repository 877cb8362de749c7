"""Counts of a run, of the second reader and of the target are one story, or every sum that is not is named."""

from __future__ import annotations

import pytest

from metricsd.migration.compare import Comparison
from metricsd.migration.model import Counts, Tally
from metricsd.migration.reconcile import differences
from metricsd.migration.second.reader import Reading


def sides(*, excluded: int = 0) -> tuple[Counts, Reading, Comparison]:
    """Return the sides of a run of 10 calls, 2 announcements, 5 entries of a session and 3 bad lines."""
    calls = Tally(source=15, loaded=10 - excluded, merged=2, rejected=3 + excluded)
    counts = Counts(sessions=Tally(source=5, loaded=1, merged=4), tool_events=calls)
    reading = Reading(calls=10, announced=2, notes=5, bad={"nul": 2}, refused={}, sessions=1)
    reading.bad["bad_json"] = 1
    return counts, reading, Comparison(calls_ours=10 - excluded)


@pytest.mark.parametrize("excluded", [0, 1])
def test_one_story_has_no_differences(excluded: int) -> None:
    """Entries that a rule of one's own left out count as rejected."""
    assert differences(*sides(excluded=excluded), excluded=excluded) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("calls", "20 entries of the source, 21 read by the second reader"),
        ("announced", "20 entries of the source, 21 read by the second reader"),
        ("notes", "20 entries of the source, 21 read by the second reader"),
        ("figures", "20 entries of the source, 21 read by the second reader"),
        ("bad", "3 rejected entries, 4 that the second reader rejects"),
        ("refused", "3 rejected entries, 4 that the second reader rejects"),
        ("target", "10 calls loaded, 9 that the target got of this run"),
        ("fate", "19 entries with a fate, 20 of the source"),
    ],
)
def test_every_sum_is_compared(change: str, said: str) -> None:
    """One entry more on one side is said with both numbers."""
    counts, reading, found = sides()
    match change:
        case "bad" | "refused":
            getattr(reading, change)["bad_time"] = 1
        case "target":
            found.calls_ours -= 1
        case "fate":
            counts = Counts(sessions=Tally(source=5, loaded=1, merged=3), tool_events=counts.tool_events)
        case name:
            setattr(reading, name, getattr(reading, name) + 1)
    assert said in differences(counts, reading, found, excluded=0)
