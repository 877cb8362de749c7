"""Times of the older hooks' files as microseconds since 1970 UTC, by arithmetic on the text.

RFC 3339, with or without seconds, fraction and offset, or a date alone; a time without an offset is UTC, a whole
number counts milliseconds. The calendar is Hinnant's days_from_civil (howardhinnant.github.io/date_algorithms.html),
not the standard library's, because the first reader uses that.
"""

from __future__ import annotations

import re
from functools import lru_cache

US_MAX = 10_000_000_000 * 1_000_000
"""The end of what is accepted, in the year 2286."""
CHARS_MAX = 64
_DAY_S, _HOUR_S, _MINUTE_S, _SECOND_US, _MS_US = 86_400, 3_600, 60, 1_000_000, 1_000
_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_time = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(?:Z|([+-])(\d\d):?(\d\d))?)?", re.ASCII
).fullmatch


def parse_us(value: object) -> int | None:
    """Return a time in microseconds; None for what is no time, or none from 1970 to 2286."""
    if isinstance(value, str):
        us = _of_text(value) if len(value) <= CHARS_MAX else None
    else:
        us = value * _MS_US if isinstance(value, int) and not isinstance(value, bool) else None
    return us if us is not None and 0 <= us < US_MAX else None


def _of_text(text: str) -> int | None:
    found = _time(text)
    if found is None:
        return None
    date, hour, minute, second, fraction, sign, east_h, east_m = found.groups()
    day = _day_of(date)
    hours, minutes, seconds = int(hour or 0), int(minute or 0), int(second or 0)
    if day is None or hours > 23 or minutes > 59 or seconds > 59:
        return None
    us = (day * _DAY_S + hours * _HOUR_S + minutes * _MINUTE_S + seconds) * _SECOND_US
    if fraction is not None:
        us += int(fraction[:6].ljust(6, "0"))
    if sign is not None:
        if int(east_h) > 23 or int(east_m) > 59:
            return None
        east_us = (int(east_h) * _HOUR_S + int(east_m) * _MINUTE_S) * _SECOND_US
        us += east_us if sign == "-" else -east_us
    return us


@lru_cache(maxsize=1024)
def _day_of(date: str) -> int | None:
    """Return the days since 1970 of a date; None for one that no calendar has."""
    year, month, day = int(date[:4]), int(date[5:7]), int(date[8:])
    leap = month == 2 and (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0))
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= _LENGTHS[month - 1] + leap:
        return None
    # The year begins in March here, so that the leap day is its last.
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
