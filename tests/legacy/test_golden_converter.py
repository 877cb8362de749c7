"""Every recorded conversion of the older converter, replayed: the same answer, but for what was wrong there."""

from __future__ import annotations

from typing import Any

import pytest

from metricsd.errors import LineRejected
from metricsd.legacy.convert import DIRECTIONS, Converter
from tests.legacy.golden import THROWS, is_like, recordings

RECORDINGS = recordings("converter.jsonl")

ANSWERED_OTHERWISE: dict[str, str] = {
    "shared/empty productivity metrics": "missing numbers count as 0: 50, where the original gave NaN",
    "shared/cloud session with string dates": "dates read back from a file are understood; the original threw",
    "shared/raw record of the real hook": "execution_time_ms is read; the original made every duration 0",
    "shared/invalid start_time": "refused by name; the original passed an invalid date and NaN on",
    "shared/invalid end_time": "refused by name; the original passed an invalid date and NaN on",
    "shared/invalid timestamp": "refused by name; the original passed an invalid date on",
}
"""Recordings whose answer was a fault: the same list as in docs/api-legacy.md."""
AS_RECORDED = [one for one in RECORDINGS if one["name"] not in ANSWERED_OTHERWISE]
TRUTHS: dict[str, dict[str, Any]] = {
    "shared/empty productivity metrics": {"productivityScore": 50},
    "shared/raw record of the real hook": {"totalDurationMs": 14, "averageDurationMs": 14},
}


def test_there_are_recordings_of_every_kind() -> None:
    """The file is the one that was recorded: no conversion of it is unknown here."""
    assert len(RECORDINGS) >= 117
    assert {one["direction"] for one in RECORDINGS} <= set(DIRECTIONS)


@pytest.mark.parametrize("recording", AS_RECORDED, ids=lambda one: f"{one['direction']} {one['name']}")
def test_conversion_is_as_recorded(recording: dict[str, Any]) -> None:
    """Same keys, same values, same types; what threw is refused."""
    convert = Converter(1_700_000_000_000).convert
    expected = recording["output"]
    if isinstance(expected, dict) and THROWS in expected:
        with pytest.raises(LineRejected):
            convert(recording["direction"], recording["input"])
        return
    found = convert(recording["direction"], recording["input"])
    assert is_like(expected, found), found


@pytest.mark.parametrize("name", ANSWERED_OTHERWISE)
def test_what_is_answered_otherwise_is_right_or_refused(name: str) -> None:
    """Each exemption has its own right answer; nothing hides behind the list."""
    (recording,) = [one for one in RECORDINGS if one["name"] == name]
    convert = Converter(0).convert
    if name.startswith("shared/invalid"):
        with pytest.raises(LineRejected, match=r"(start_time|end_time|timestamp): expected a time"):
            convert(recording["direction"], recording["input"])
        return
    found = convert(recording["direction"], recording["input"])
    if name in TRUTHS:
        assert is_like(recording["output"] | TRUTHS[name], found)
    else:
        with_dates = next(one for one in RECORDINGS if one["name"] == "shared/cloud session without metadata")
        assert found == with_dates["output"]
