"""Times as clients of the older API write them, read as its runtime read them, to microseconds.

Two questions are kept apart, as there: whether a text is an ISO 8601 date at all, and which moment it names. Kept is
that a day that its month lacks rolls over (February 30 is March 2) and that a date alone is midnight UTC. Corrected
is the one thing that depended on the server: a time without an offset is UTC, so that a fact has the same id
wherever it arrives.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from metricsd.clock import US_PER_MS, US_PER_S
from metricsd.decode.envelope import AT_US_MAX

CHARS_MAX = 64
_DATE = r"(?P<year>\d{4})(?:-(?P<month>0[1-9]|1[0-2])(?:-(?P<day>0[1-9]|[12]\d|3[01]))?)?"
_TIME = r"(?P<hour>[01]\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d)(?:[.,](?P<part>\d{1,20}))?)?"
_ZONE = r"(?P<zone>Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_moment = re.compile(f"{_DATE}(?:[T ]{_TIME}{_ZONE}?)?", re.ASCII).fullmatch
_OTHER_DATE = (
    r"(?:\d{4}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])|\d{4}-?W(?:[0-4]\d|5[0-3])(?:-?[1-7])?|\d{4}-?[0-3]\d\d)"
)
_OTHER_TIME = r"(?:[01]\d|2[0-4])(?::?[0-5]\d(?::?[0-5]\d)?)?(?:[.,]\d+)?"
_other = re.compile(f"(?:{_OTHER_DATE}|{_DATE})(?:[T ]{_OTHER_TIME}{_ZONE}?)?", re.ASCII).fullmatch
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


def is_iso(text: str) -> bool:
    """Return whether a text has the form of an ISO 8601 date, be it one that names no moment here (a week)."""
    return len(text) <= CHARS_MAX and _other(text) is not None


def find_us(value: object) -> int | None:
    """Return a time as microseconds since 1970 UTC; a number is epoch milliseconds; None for what is no time.

    Times are from 1970 to 2286, as everywhere in metricsd.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        us = int(value * US_PER_MS) if -AT_US_MAX < value < AT_US_MAX else -1
    elif isinstance(value, str) and len(value) <= CHARS_MAX and (found := _moment(value)) is not None:
        us = _us_of(found)
    else:
        return None
    return us if 0 <= us < AT_US_MAX else None


def _us_of(found: re.Match[str]) -> int:
    year = int(found["year"])
    if year == 0:
        return -1
    month, days = int(found["month"] or 1), int(found["day"] or 1) - 1
    hour, minute, second = (int(found[name] or 0) for name in ("hour", "minute", "second"))
    part = (found["part"] or "")[:6].ljust(6, "0")
    if hour == 24 and (minute or second or int(part)):
        return -1
    first = (datetime(year, month, 1, tzinfo=UTC) - _EPOCH) // _US
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second - _offset_s(found["zone"])
    return first + seconds * US_PER_S + int(part)


def _offset_s(zone: str | None) -> int:
    if zone is None or zone == "Z":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    seconds = (int(digits[:2]) * 60 + int(digits[2:])) * 60
    return -seconds if zone[0] == "-" else seconds
