"""Numbers as they come from strangers, and the few operations that every figure shares.

What is not a finite number counts as the default, so that no formula can end in NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MAGNITUDE_MAX = 1e15
"""Beyond this, sums of floats lose whole units; nothing real is so large."""


def number_of(value: object, default: float = 0.0) -> float:
    """Return a finite number for what JSON can hold: a number, a text that is one, else `default`."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        return _bounded(value, default)
    if isinstance(value, str) and len(value) <= 40:
        try:
            return _bounded(float(value), default)
        except ValueError:
            return default
    return default


def plain(value: float) -> int | float:
    """Return a whole number as int, so that JSON shows 75 and not 75.0."""
    return int(value) if float(value).is_integer() else value


def rounded(value: float, digits: int = 1) -> float:
    """Return `value` rounded half up, as the older tools did: 0.05 becomes 0.1, where Python's round gives 0.0."""
    scale: int = 10**digits
    # The decimal text decides what a half is: 1.005 * 100 is 100.49999999999999.
    return math.floor(float(f"{value * scale:.9f}") + 0.5) / float(scale)


def clamp(value: float, low: float, high: float) -> float:
    """Return `value` inside the bounds."""
    return min(max(value, low), high)


def ratio(part: float, whole: float, default: float = 0.0) -> float:
    """Return part / whole; `default` where there is no whole."""
    return part / whole if whole else default


def mean(values: Iterable[float], default: float = 0.0) -> float:
    """Return the mean; `default` of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else default


def _bounded(value: float, default: float) -> float:
    # An int of JSON may be too large for a float, and comparing is safe where converting is not.
    if value != value or not -MAGNITUDE_MAX <= value <= MAGNITUDE_MAX:
        return default
    return float(value)
