"""What tests put in the place of the world: a clock that moves when told to."""

from __future__ import annotations

import asyncio

START_US = 1_790_000_000_000_000
"""A Monday in September 2026, in microseconds."""


class FakeClock:
    """A clock that stands still until `advance`; sleeping moves it at once."""

    def __init__(self, now_us: int = START_US) -> None:
        self._now_us = now_us
        self._monotonic = 1000.0

    def now_us(self) -> int:
        return self._now_us

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Move wall and monotonic time."""
        self._now_us += round(seconds * 1_000_000)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Move wall time alone, as a person or NTP does."""
        self._now_us += round(seconds * 1_000_000)
