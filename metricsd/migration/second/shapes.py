"""The small shapes that entries are read into: texts, counts, scores, and why an entry is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from metricsd.migration.second import words

Json = Mapping[str, Any]
SCORE_MAX = 100
_DIGITS = frozenset("0123456789")
_DIGITS_MAX = 19


class Bad(NamedTuple):
    """An entry that cannot be taken, and why in one word."""

    reason: str


def text_of(line: Json, name: str) -> str | None:
    """Return a text of an object; None for an empty one and for anything else."""
    value = line.get(name)
    return value if isinstance(value, str) and value else None


def count_of(value: object, default: int) -> int:
    """Return a whole number that the older API wrote, some of them as text."""
    if isinstance(value, str) and 0 < len(value) <= _DIGITS_MAX and _DIGITS.issuperset(value):
        value = int(value)
    found = words.number(value)
    return default if found is None else found


def score_of(value: object, scale: int) -> int | float | None:
    """Return a score from 0 to 100 of one on a scale of 10 (to a tenth of a point) or of 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    score = round(value * scale, 1) if scale != 1 else value
    if isinstance(score, float) and not math.isfinite(score):
        return None
    score = min(SCORE_MAX, max(0, score))
    return int(score) if score == int(score) else score


def branch_of(value: object) -> str | None:
    """Return a branch's name."""
    return words.clean(value) if isinstance(value, str) and value and value != "unknown" else None
