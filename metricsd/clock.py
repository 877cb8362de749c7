"""Time as a dependency: the only place that asks the operating system for it.

Everything that waits or stamps takes a `Clock`, so that tests run years in milliseconds. Wall time is integer
microseconds UTC; durations are seconds as float on the monotonic clock, because wall clocks jump.
"""

from __future__ import annotations

import time
from typing import Protocol

US_PER_S = 1_000_000
US_PER_MS = 1_000


class Clock(Protocol):
    """What the product may know of time."""

    def now_us(self) -> int:
        """Return wall time as microseconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait on the monotonic clock."""
        ...


class SystemClock:
    """The operating system's clocks."""

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        # Imported here because `metricsd status` reads clocks too, and never sleeps.
        import asyncio

        await asyncio.sleep(seconds)
