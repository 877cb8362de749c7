"""What kind of value something was, in a word or two: what a finding may say of it, and never the value itself."""

from __future__ import annotations

import math

ABSENT = "absent"
_POWERS = ((10**15, "above 10^15"), (10**12, "above 10^12"), (10**9, "above 10^9"), (10**6, "above 10^6"))
_LENGTHS = ((1000, "above 1000"), (200, "201-1000"), (50, "51-200"), (10, "11-50"), (0, "1-10"))


def class_of(value: object) -> str:
    """Return the class of a value: `null`, `flag`, `negative`, `fraction`, `number above 10^9`, `text 11-50`, `list`."""
    match value:
        case None:
            return "null"
        case bool():
            return "flag"
        case int() | float():
            return _number(value)
        case str():
            return f"text {next(name for least, name in _LENGTHS if len(value) > least)}" if value else "empty text"
        case list() | tuple():
            return "list" if value else "empty list"
        case dict():
            return "object"
        case _:
            return "other"


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number"
    if value < 0:
        return "negative"
    for least, name in _POWERS:
        if value >= least:
            return f"number {name}"
    return "fraction" if isinstance(value, float) and not value.is_integer() else "number"
