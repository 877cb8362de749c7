"""Single values of the older formats: times, ids, objects and lists, checked where they are read.

Raises LineRejected that names the field. Nothing here returns NaN, a date that is none, or a value of another type
than it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from metricsd.errors import LineRejected
from metricsd.ids import user_uuid as user_uuid

Json = dict[str, Any]

TEXT_SHOWN_MAX = 60
TIME_CHARS_MAX = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_TIME_MS_MIN = -62_135_596_800_000
"""The first millisecond of the year 1."""
_TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def parse_ms(name: str, value: object) -> int:
    """Return a time (RFC 3339, a date alone, or epoch milliseconds) as milliseconds since 1970 UTC.

    A time without an offset is UTC. What is finer than a millisecond is cut, as the older tools did.
    """
    found = find_ms(value)
    if found is None:
        raise LineRejected("bad_time", f"{name}: expected a time such as 2025-01-07T09:00:00Z, not {shown(value)}")
    return found


def find_ms(value: object) -> int | None:
    """Return a time as milliseconds since 1970 UTC; None for what is no time."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return int(value) if _TIME_MS_MIN <= value <= _TIME_MS_MAX else None
    if not isinstance(value, str) or len(value) > TIME_CHARS_MAX:
        return None
    try:
        at = datetime.fromisoformat(value)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        return (at - _EPOCH) // _MS
    except (ValueError, OverflowError):
        return None


def iso(ms: int) -> str:
    """Return milliseconds since 1970 as the older formats write them: UTC, three digits, Z; at most the year 9999."""
    return (
        (_EPOCH + min(max(ms, _TIME_MS_MIN), _TIME_MS_MAX) * _MS)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def record_of(value: object, what: str) -> Json:
    """Return a JSON object, or refuse what is none."""
    if not isinstance(value, dict):
        raise LineRejected("bad_record", f"{what}: expected an object, not {kind_of(value)}")
    return value


def text_of(record: Mapping[str, object], name: str, *, default: str | None = None) -> str:
    """Return a text field; the default stands for a missing, null or empty one, and without a default that is refused."""
    value = record.get(name)
    if isinstance(value, str) and value:
        return value
    if value is None or value == "":
        if default is not None:
            return default
        raise LineRejected("bad_record", f"{name} is missing")
    raise LineRejected("bad_record", f"{name}: expected text, not {kind_of(value)}")


def object_of(record: Mapping[str, object], name: str) -> Json | None:
    """Return an object field; None for a missing or null one."""
    value = record.get(name)
    if value is None or isinstance(value, dict):
        return value
    raise LineRejected("bad_record", f"{name}: expected an object, not {kind_of(value)}")


def list_of(record: Mapping[str, object], name: str) -> list[Any]:
    """Return a list field; empty for anything else, because the older hooks wrote a count under the same name."""
    value = record.get(name)
    return value if isinstance(value, list) else []


def numeric(record: Mapping[str, object], name: str) -> int | float | str | None:
    """Return a number, or a text that is one, as it is; None for a missing or null one."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= TIME_CHARS_MAX:
        try:
            if math.isfinite(float(value)):
                return value
        except ValueError:
            pass
    raise LineRejected("bad_record", f"{name}: expected a number, not {shown(value)}")


def kind_of(value: object) -> str:
    """Return what JSON calls a value, for a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            return "text"
        case _:
            return "a number"


def shown(value: object) -> str:
    """Return a value for a message: short, and without what could steer a terminal."""
    if isinstance(value, dict | list) or value is None:
        return kind_of(value)
    try:
        text = str(value)
    except ValueError:
        # Python refuses to print numbers of thousands of digits.
        return kind_of(value)
    return repr(text[:TEXT_SHOWN_MAX])
