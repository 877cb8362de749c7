"""How much a tenant may ask of all processes together in one minute: requests, and bytes of bodies.

The sums lie in the database, but no request writes there by itself: a process takes a part of the minute's allowance
in advance, spends it in memory, and asks for more when it is used up. The sum over all processes never exceeds the
limit; what a process took and did not spend is lost with the minute. Who is refused is told when the next minute begins.
"""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple, Protocol

from metricsd.clock import US_PER_S, Clock
from metricsd.cloud.access import Tenant
from metricsd.cloud.problems import Refused, refuse
from metricsd.config import Cloud

MINUTE_US = 60 * US_PER_S
MINUTES_KEPT = 2
MINUTES_AHEAD = 24 * 60
"""Sums of later minutes are of a clock that was wrong; other processes' clocks may be ahead by less."""
PARTS = 50
"""A process takes a fiftieth of a minute's allowance at a time: few writes, and little lost in idle processes."""
SPREAD_S = 5.0
"""Those who are refused come back within this time after the minute's end, not all in its first moment."""


class Amount(NamedTuple):
    """Requests, and bytes of their bodies as received."""

    requests: int
    size: int


class Meter(Protocol):
    """Where the sums of all processes lie. They need not survive a crash of the machine."""

    async def spend(self, tenant: Tenant, minute: int, amount: Amount) -> Amount:
        """Add to a tenant's sums of a minute (since 1970) and return what they were before; one step for everybody."""
        ...

    async def stored_bytes(self, tenant: Tenant) -> int:
        """Return how much room a tenant's data takes in the database."""
        ...


class _Left:
    """What this process may still spend of a tenant's minute; `over` once the minute has no more to give.

    `taking` is held while more is asked for: a crowd that arrives at once would else take a part for each of its
    requests, and use up the minute's allowance without spending it.
    """

    __slots__ = ("over", "requests", "size", "taking")

    def __init__(self) -> None:
        self.requests = 0
        self.size = 0
        self.over = False
        self.taking = asyncio.Lock()


class Rates:
    """The allowances of all tenants, as one process holds them."""

    def __init__(self, meter: Meter, settings: Cloud, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._limit = Amount(settings.tenant_requests_per_minute, settings.tenant_bytes_per_minute)
        self._minute = -1
        self._left: dict[str, _Left] = {}

    async def count(self, tenant: Tenant, size: int) -> None:
        """Count one request with a body of `size` bytes; raise 429 when the tenant's minute is used up."""
        if not any(self._limit):
            return
        minute = self._clock.now_us() // MINUTE_US
        if minute != self._minute:
            self._minute = minute
            # Bounded by the tenants that ask within a minute.
            self._left.clear()
        left = self._left.get(tenant.id)
        if left is None:
            left = self._left[tenant.id] = _Left()
        need = Amount(1, size)
        # Once refused, this process asks no more until the next minute: a flood must not become a flood of writes.
        if any(missing(left, need, self._limit)) and not left.over:
            async with left.taking:
                await self._take_more(tenant, minute, left, need)
                self._spend(left, size)
        else:
            self._spend(left, size)

    async def _take_more(self, tenant: Tenant, minute: int, left: _Left, need: Amount) -> None:
        """Take the next part of the minute's allowance, unless whoever held the lock before did so already."""
        wanted = missing(left, need, self._limit)
        if any(wanted) and not left.over:
            before = await self._meter.spend(tenant, minute, wanted)
            got = granted(before, wanted, self._limit)
            left.requests += got.requests
            left.size += got.size
            left.over = got != wanted

    def _spend(self, left: _Left, size: int) -> None:
        """Spend, or refuse by the name of the limit; a limit of 0 is none."""
        if self._limit.requests and left.requests < 1:
            raise self._refusal("tenant_requests_per_minute", self._limit.requests)
        if self._limit.size and left.size < size:
            raise self._refusal("tenant_bytes_per_minute", self._limit.size)
        left.requests -= 1
        left.size -= size

    def _refusal(self, limit: str, bound: int) -> Refused:
        rest_s = (MINUTE_US - self._clock.now_us() % MINUTE_US) / US_PER_S
        wait_s = rest_s + random.uniform(0, SPREAD_S)  # noqa: S311 - nothing secret
        return refuse(
            429, "rate_limited", f"this tenant has used its {bound} of this minute", limit=limit, retry_after_s=wait_s
        )


def kept_minutes(minute: int) -> tuple[int, int]:
    """Return the first and the last minute whose sums are kept when it is this one. Pure."""
    return minute - MINUTES_KEPT, minute + MINUTES_AHEAD


def missing(left: _Left, need: Amount, limit: Amount) -> Amount:
    """Return what to take from the minute's allowance before `need` can be spent: parts of it, or nothing. Pure."""
    requests = max(need.requests, limit.requests // PARTS) if limit.requests and left.requests < need.requests else 0
    short = need.size - left.size
    return Amount(requests, max(short, limit.size // PARTS) if limit.size and short > 0 else 0)


def granted(before: Amount, wanted: Amount, limit: Amount) -> Amount:
    """Return how much of what was taken lies below the limit. Pure."""
    return Amount(
        max(0, min(wanted.requests, limit.requests - before.requests)),
        max(0, min(wanted.size, limit.size - before.size)),
    )
