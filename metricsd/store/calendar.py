"""The user's calendar: which local day a moment belongs to, without asking the time zone for every event."""

from __future__ import annotations

import datetime as dt
import os
from zoneinfo import ZoneInfo

QUARTER_US = 900 * 1_000_000
"""All time zone offsets are multiples of a quarter of an hour, so a quarter never spans two days."""
CACHE_MAX = 100_000


class Days:
    """Maps microseconds to the user's calendar days, cached by quarter of an hour."""

    def __init__(self, zone: dt.tzinfo | None) -> None:
        self._zone = zone
        self._cache: dict[int, int] = {}

    def of(self, at_us: int) -> int:
        """Return the day number (days since 1970-01-01 in the user's time zone)."""
        quarter = at_us // QUARTER_US
        day = self._cache.get(quarter)
        if day is None:
            if len(self._cache) > CACHE_MAX:
                self._cache.clear()
            day = self._cache[quarter] = self._look_up(quarter * 900)
        return day

    def _look_up(self, second: int) -> int:
        try:
            local = (
                dt.datetime.fromtimestamp(second, self._zone)
                if self._zone
                else dt.datetime.fromtimestamp(second).astimezone()
            )
            return local.toordinal() - dt.date(1970, 1, 1).toordinal()
        except (OverflowError, ValueError, OSError):
            return second // 86400


def system_zone() -> dt.tzinfo | None:
    """Return the system's named time zone if TZ gives one; None means the C library's local time."""
    name = os.environ.get("TZ", "")
    if not name:
        return None
    try:
        return ZoneInfo(name.lstrip(":"))
    except (KeyError, ValueError, OSError):
        return None
