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
DAY_US = 86_400 * 1_000_000
_QUARTER_S, _DAY_S = 900, 86_400
UTC_NAME = "UTC"
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_LOCALTIME = Path("/etc/localtime")
_UTC_NAMES = frozenset({"UTC", "Etc/UTC", "UCT", "Etc/UCT", "Zulu", "Etc/Zulu", "Universal", "Etc/Universal"})


class Days:
    """Maps microseconds to the user's calendar days. `name` is the zone's.

    The zone is asked for a day's offset once, and for each quarter of an hour of the few days on which clocks change.
    """

    def __init__(self, zone: dt.tzinfo | None, name: str | None = None) -> None:
        self._zone = zone
        self._cache: dict[int, int] = {}
        self._offsets: dict[int, int | None] = {}
        """Seconds by which local time is ahead on a day of UTC; None where that changes."""
        self.name = name if name is not None else getattr(zone, "key", None) or system_zone_name()

    def of(self, at_us: int) -> int:
        """Return the day number (days since 1970-01-01 in the user's time zone)."""
        return self.slot(at_us) // HOURS

    def slot(self, at_us: int) -> int:
        """Return day number * 24 + hour of the day."""
        quarter = at_us // QUARTER_US
        try:
            offset = self._offsets[at_us // DAY_US]
        except KeyError:
            offset = self._offset_of(at_us // DAY_US)
        if offset is not None:
            return (quarter * _QUARTER_S + offset) // 3600
        slot = self._cache.get(quarter)
        if slot is None:
            if len(self._cache) > CACHE_MAX:
                self._cache.clear()
            slot = self._cache[quarter] = self._look_up(quarter * _QUARTER_S)
        return slot

    def start_us(self, day: int) -> int:
        """Return the first microsecond of a day."""
        try:
            midnight = dt.datetime.combine(date_of(day), dt.time(), self._zone)
            return round(midnight.timestamp()) * 1_000_000
        except (OverflowError, ValueError, OSError):
            return day * 86400 * 1_000_000

    def _look_up(self, second: int) -> int:
        local = self._local_s(second)
        return (second if local is None else local) // 3600

    def _offset_of(self, day: int) -> int | None:
        """Find by how much local time is ahead on a day of UTC, and remember it."""
        if len(self._offsets) > CACHE_MAX:
            self._offsets.clear()
        first, last = day * _DAY_S, (day + 1) * _DAY_S - _QUARTER_S
        at_first, at_last = self._local_s(first), self._local_s(last)
        is_same = at_first is not None and at_last is not None and at_first - first == at_last - last
        self._offsets[day] = found = at_first - first if is_same and at_first is not None else None
        return found

    def _local_s(self, second: int) -> int | None:
        """Return the local time as seconds since 1970; None where it cannot be told."""
        try:
            local = dt.datetime.fromtimestamp(second, self._zone)
        except (OverflowError, ValueError, OSError):
            return None
        return (local.toordinal() - _EPOCH_DAY) * _DAY_S + local.hour * 3600 + local.minute * 60 + local.second


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
