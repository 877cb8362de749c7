"""A moment's local day and hour, told without asking the zone each time, are those of the zone."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metricsd.store.calendar import QUARTER_US, Days

ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
    "Pacific/Apia", "Africa/Monrovia", "America/Sao_Paulo",
)  # fmt: skip
TURNS = [
    int(datetime.fromisoformat(f"{turn}:00Z").timestamp())
    for turn in (
        "2026-03-29T01:00", "2026-10-25T01:00", "2026-04-04T15:00", "2011-12-30T10:00", "1972-01-07T00:00",
        "2018-11-04T03:00",
    )
]  # fmt: skip
"""Moments at which a clock of these zones was put forward or back, or a day was left out."""
moments = st.integers(0, 4_000_000_000) | st.sampled_from(TURNS).flatmap(
    lambda turn: st.integers(turn - 90_000, turn + 90_000)
)


@given(st.sampled_from(ZONES), st.lists(moments, min_size=1, max_size=20))
@example("Pacific/Apia", [TURNS[3] - 1, TURNS[3], TURNS[3] - 40_000])
def test_a_slot_is_the_zones_day_and_hour(name: str, seconds: list[int]) -> None:
    """Whatever was asked before, and on the days on which clocks change too."""
    zone = ZoneInfo(name)
    days = Days(zone)
    for second in seconds:
        local = datetime.fromtimestamp(second * 1_000_000 // QUARTER_US * 900, zone)
        day = local.toordinal() - date(1970, 1, 1).toordinal()
        assert divmod(days.slot(second * 1_000_000), 24) == (day, local.hour)
        assert days.of(second * 1_000_000) == day


@pytest.mark.parametrize("at_us", [-(2**62), 2**62, 2**63 - 1])
def test_a_moment_that_no_calendar_has_is_of_some_day(at_us: int) -> None:
    """Events of hostile times are counted, and nothing fails."""
    assert isinstance(Days(ZoneInfo("Europe/Berlin")).slot(at_us), int)
