"""Counted events, as rooms hand them to each other: cells of totals with a histogram of durations.

The store adds events up into cells, analytics makes figures of them; neither knows the other. A histogram is
log-linear: its buckets are part of the stored data and must never change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

NO_DURATION = -1
"""Bucket of what has no duration."""
COUNTED_MAX = 1 << 40
"""What one event adds to a sum at most (35 years of milliseconds): a hostile number can never make a sum overflow."""
LINEAR_MS = 16
"""Durations below this many milliseconds have a bucket each; above, eight buckets per doubling (at most 12.5 % wide)."""


class Cell(NamedTuple):
    """What some events add up to. A dimension that was not asked for is None, and so is a name that an event lacks.

    `day` counts from 1970-01-01 in the user's time zone, `bucket` is of the duration. Sums may be negative: such a
    cell takes back what another one counts.
    """

    day: int | None
    app: str | None
    kind: str | None
    tool: str | None
    project: str | None
    bucket: int | None
    n: int
    failed: int
    duration_ms: int
    lines_added: int
    lines_removed: int


class HourCell(NamedTuple):
    """How many events of a kind fell into an hour (0 to 23) of a local day, and how many of them failed."""

    day: int
    hour: int
    kind: str
    n: int
    failed: int


class SessionTotal(NamedTuple):
    """What a session adds up to, over all devices. Times are microseconds UTC.

    `score` (0 to 100), `focus_ms` and `interruptions` are what a person or an older tool noted; None when nobody did.
    """

    id: str
    app: str
    project: str | None
    branch: str | None
    model: str | None
    started_at: int
    last_at: int
    ended_at: int | None
    end_reason: str | None
    tool_calls: int = 0
    tool_failures: int = 0
    tool_ms: int = 0
    prompts: int = 0
    turns: int = 0
    agents: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    description: str | None = None
    tags: tuple[str, ...] = ()
    score: float | None = None
    focus_ms: int | None = None
    interruptions: int | None = None
    user: str | None = None


def bucket_of(duration_ms: int | None) -> int:
    """Return the histogram bucket of a duration; NO_DURATION for None."""
    if duration_ms is None:
        return NO_DURATION
    if duration_ms < LINEAR_MS:
        return duration_ms
    shift = duration_ms.bit_length() - 4
    return LINEAR_MS + (shift - 1) * 8 + (duration_ms >> shift) - 8


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """Return the (first, last) millisecond of a bucket >= 0."""
    if bucket < LINEAR_MS:
        return bucket, bucket
    shift, part = divmod(bucket - LINEAR_MS, 8)
    low = (part + 8) << (shift + 1)
    return low, low + (1 << (shift + 1)) - 1


def percentile_ms(histogram: Mapping[int, int], share: float) -> float | None:
    """Return the duration that `share` of the counted calls do not exceed; None when none had a duration.

    Nearest rank, then evenly between the bounds of its bucket: within 12.5 % of the exact value.
    """
    counts = sorted((bucket, n) for bucket, n in histogram.items() if bucket != NO_DURATION and n > 0)
    rank = math.ceil(share * sum(n for _, n in counts))
    for bucket, n in counts:
        if rank <= n:
            low, high = bucket_bounds(bucket)
            return low + (high - low) * (max(rank, 1) - 0.5) / n
        rank -= n
    return None
