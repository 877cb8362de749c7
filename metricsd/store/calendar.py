"""The user's calendar: which local day a moment belongs to, without asking the time zone for every event.

A zone has a name, so that totals kept in one zone are never read as those of another.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

QUARTER_US = 900 * 1_000_000
"""All time zone offsets are multiples of a quarter of an hour, so a quarter never spans two days."""
CACHE_MAX = 100_000
HOURS = 24
UTC_NAME = "UTC"
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_LOCALTIME = Path("/etc/localtime")
_UTC_NAMES = frozenset({"UTC", "Etc/UTC", "UCT", "Etc/UCT", "Zulu", "Etc/Zulu", "Universal", "Etc/Universal"})


class Days:
    """Maps microseconds to the user's calendar days, cached by quarter of an hour. `name` is the zone's."""

    def __init__(self, zone: dt.tzinfo | None, name: str | None = None) -> None:
        self._zone = zone
        self._cache: dict[int, int] = {}
        self.name = name if name is not None else getattr(zone, "key", None) or system_zone_name()

    def of(self, at_us: int) -> int:
        """Return the day number (days since 1970-01-01 in the user's time zone)."""
        return self.slot(at_us) // HOURS

    def slot(self, at_us: int) -> int:
        """Return day number * 24 + hour of the day."""
        quarter = at_us // QUARTER_US
        slot = self._cache.get(quarter)
        if slot is None:
            if len(self._cache) > CACHE_MAX:
                self._cache.clear()
            slot = self._cache[quarter] = self._look_up(quarter * 900)
        return slot

    def start_us(self, day: int) -> int:
        """Return the first microsecond of a day."""
        try:
            midnight = dt.datetime.combine(date_of(day), dt.time(), self._zone)
            return round(midnight.timestamp()) * 1_000_000
        except (OverflowError, ValueError, OSError):
            return day * 86400 * 1_000_000

    def _look_up(self, second: int) -> int:
        try:
            local = (
                dt.datetime.fromtimestamp(second, self._zone)
                if self._zone
                else dt.datetime.fromtimestamp(second).astimezone()
            )
            return (local.toordinal() - _EPOCH_DAY) * HOURS + local.hour
        except (OverflowError, ValueError, OSError):
            return second // 3600


def date_of(day: int) -> dt.date:
    """Return the date of a day number."""
    return dt.date.fromordinal(_EPOCH_DAY + day)


def system_zone() -> dt.tzinfo | None:
    """Return the system's named time zone if TZ gives one; None means the C library's local time."""
    return find_zone(os.environ.get("TZ", "").lstrip(":"))


def system_zone_name() -> str:
    """Return the name of the user's time zone; what TZ says if it has no other name, empty when nobody knows."""
    name = os.environ.get("TZ", "").lstrip(":")
    if not name:
        try:
            _, _, name = str(_LOCALTIME.resolve(strict=True)).partition("/zoneinfo/")
        except OSError:
            # Without that file the C library takes UTC.
            name = UTC_NAME
        name = name.removeprefix("posix/")
    return UTC_NAME if name in _UTC_NAMES else name


def find_zone(name: str) -> dt.tzinfo | None:
    """Return the zone of that name; None for none that this system knows."""
    if not name:
        return None
    # Four milliseconds, which nobody needs whose TZ is not set.
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def here() -> Days:
    """Return the calendar of whoever runs this."""
    return Days(system_zone(), system_zone_name())


def days_in(name: str) -> Days:
    """Return the calendar of a zone by its name; the user's own where that is the same or cannot be found."""
    if name == system_zone_name():
        return here()
    zone = find_zone(name)
    return Days(zone, name) if zone is not None else here()
