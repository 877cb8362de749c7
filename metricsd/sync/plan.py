"""What a sync round should do, decided without a clock, a store or a network.

Everything here is a pure function of the evidence that it is given, and is tested as a table without a server. The
engine gathers the evidence and carries the decisions out; it never decides on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from random import Random
from typing import NamedTuple, TypeVar

from metricsd.clock import US_PER_S
from metricsd.protocol import HelloReply

T = TypeVar("T")

BACKOFF_FIRST_S = 2.0
"""Upper bound of the first pause after a failure; it doubles from there."""
RETRY_AFTER_MAX_S = 3600.0
"""Longest Retry-After that is honoured: a proxy's wrong header must not silence a laptop for days."""
BATCH_GROWTH = 2
WAKE_JITTER_SHARE = 0.05
WAKE_JITTER_MAX_S = 15.0
"""After sleep everybody in an office opens the lid at nine; the first sync is spread over this many seconds."""
LATE_SHARE = 0.5
"""A tick that is overdue by more than this share of the interval was slept through."""
LATE_MIN_S = 5.0
_DOUBLINGS_MAX = 32


class Action(StrEnum):
    """What the reply to a hello calls for."""

    IN_SYNC = "in_sync"
    RESEND = "resend"
    """The cloud has more than we know: an answer was lost, and with it whose each event is. Offer the same again."""
    REOFFER = "reoffer"
    """The cloud has less than it acknowledged: it was restored from an older copy."""
    FORK = "fork"
    """Another installation wrote under our identity, or we were restored from an older copy."""


class LocalStream(NamedTuple):
    """What this device knows of its stream, and of the position that the cloud names.

    id_at_last   our event id at the reply's `last_seq`, or None: nothing lies there (any more)
    holds_last   whether the event `last_id` is in the store at all, under any device
    """

    epoch: int
    acked_seq: int
    acked_id: str
    last_seq: int
    id_at_last: str | None = None
    holds_last: bool = False


class Decision(NamedTuple):
    """The action, and for REOFFER the (seq, id) up to which the stream then counts as acknowledged."""

    action: Action
    seq: int = 0
    id: str = ""
    reset_cursor: bool = False


def decide(local: LocalStream, reply: HelloReply) -> Decision:
    """Return what a hello's reply calls for. Pure; DESIGN section 7 names the cases.

    A doubt about who wrote the stream always ends in FORK: a new device id costs one enrolment, a shared one costs
    events.
    """
    if reply.last_seq > 0 and reply.epoch != local.epoch:
        return Decision(Action.FORK, reset_cursor=True)
    reset = not reply.cursor_ok
    if reply.last_seq == local.acked_seq:
        same = reply.last_seq == 0 or reply.last_id == local.acked_id
        return Decision(Action.IN_SYNC, reset_cursor=reset) if same else Decision(Action.FORK, reset_cursor=True)
    if reply.last_seq < local.acked_seq:
        return _behind(local, reply)
    return _ahead(local, reply, reset)


def _behind(local: LocalStream, reply: HelloReply) -> Decision:
    """Decide for a cloud that has less than it acknowledged: it lost its newest history."""
    if reply.last_seq > 0 and local.id_at_last not in (None, reply.last_id):
        return Decision(Action.FORK, reset_cursor=True)
    # What lies at that position may be gone through retention; then the cloud's word is all there is.
    return Decision(Action.REOFFER, reply.last_seq, reply.last_id, reset_cursor=True)


def _ahead(local: LocalStream, reply: HelloReply, reset: bool) -> Decision:
    """Decide for a cloud that has more than we know of: a lost answer, or somebody else's writes."""
    fork = Decision(Action.FORK, reset_cursor=True)
    if local.acked_seq > 0 and reply.id_at_acked not in (None, local.acked_id):
        return fork
    if reply.last_seq > local.last_seq:
        return fork
    if local.id_at_last is None and not local.holds_last:
        return fork
    if local.id_at_last not in (None, reply.last_id):
        return fork
    return Decision(Action.RESEND, reset_cursor=reset)


def first_batch(batch_size: int, items_max: int) -> int:
    """Return how many items the first request of a round may hold."""
    return max(1, min(batch_size, items_max))


def next_batch(current: int, *, full: bool, items_max: int) -> int:
    """Return the size of the next request: a full one means that we are behind, so it grows to the server's limit."""
    return max(1, min(current * BATCH_GROWTH if full else current, items_max))


def take_bytes(sizes: Sequence[int], bytes_max: int) -> int:
    """Return how many leading items fit into `bytes_max`, at least one: a single item must get its own verdict."""
    total = 0
    for count, size in enumerate(sizes):
        total += size + 1
        if total > bytes_max:
            return max(count, 1)
    return len(sizes)


def halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Split a batch that was refused as a whole, to find the bad item in log2(n) requests; needs two items."""
    middle = len(items) // 2
    return items[:middle], items[middle:]


def backoff_s(failures: int, backoff_max_s: float, retry_after_s: float | None, rng: Random) -> float:
    """Return the pause after `failures` (>= 1) failed rounds in a row.

    Full jitter (M. Brooker, "Exponential Backoff And Jitter", 2015): uniform between zero and a bound that doubles,
    so that a thousand laptops do not come back in step. A Retry-After is a lower bound.
    """
    bound = min(backoff_max_s, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
    pause = rng.uniform(0.0, bound)
    if retry_after_s is None:
        return pause
    return max(pause, min(max(retry_after_s, 0.0), RETRY_AFTER_MAX_S))


def offset_s(device_id: str, interval_s: float) -> float:
    """Return this device's stable place inside the interval, so that a fleet spreads evenly over it."""
    share = int.from_bytes(blake2b(device_id.encode(), digest_size=8).digest(), "big") / 2**64
    return share * interval_s


def next_regular_us(now_us: int, interval_s: float, offset: float) -> int:
    """Return the first tick after `now_us`. Ticks lie on a fixed grid, so missed ones are skipped, not caught up."""
    interval_us = max(int(interval_s * US_PER_S), 1)
    offset_us = int(offset * US_PER_S) % interval_us
    return now_us - (now_us - offset_us) % interval_us + interval_us


class Due(StrEnum):
    """Whether a tick is due."""

    NOT_YET = "not_yet"
    NOW = "now"
    LATE = "late"
    """The machine slept through it: one sync, after `wake_jitter_s`."""


def due(now_us: int, next_us: int, interval_s: float) -> Due:
    """Return whether the tick planned for `next_us` is due. A clock set back by over an interval makes it due."""
    overdue_s = (now_us - next_us) / US_PER_S
    if overdue_s < -max(2 * interval_s, RETRY_AFTER_MAX_S):
        return Due.NOW
    if overdue_s < 0:
        return Due.NOT_YET
    return Due.LATE if overdue_s > max(LATE_SHARE * interval_s, LATE_MIN_S) else Due.NOW


def wake_jitter_s(interval_s: float, rng: Random) -> float:
    """Return how long to wait before the one sync after sleep."""
    return rng.uniform(0.0, min(WAKE_JITTER_SHARE * interval_s, WAKE_JITTER_MAX_S))
