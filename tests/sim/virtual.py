"""An event loop in virtual time: when all wait for a timer, the clock jumps to it, so that a day passes in a second.

Threads are real: while `working()` is entered somebody waits for one, and the clock stands still until it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Iterator
from typing import Any

from tests.fakes import START_US, FakeClock

US_PER_S = 1_000_000
THREAD_WAIT_S = 0.5
"""How long a look for a thread's answer takes at most; the answer itself ends it."""


class _Selector(selectors.DefaultSelector):
    """A selector that does not wait for time: it moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        ready = super().select(THREAD_WAIT_S if self.threads or timeout is None else 0)
        if not ready and not self.threads and timeout is not None:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop. `asyncio.run(main(), loop_factory=VirtualLoop)` of Python 3.12 is `run` of a Runner in 3.11."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Stand still inside: a thread is at work for whoever waits here."""
        self._virtual.threads += 1
        try:
            yield
        finally:
            self._virtual.threads -= 1


class LoopClock(FakeClock):
    """A machine's clocks: the loop's time, with the wall clock wrong by `skew_s`."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self.skew_s = 0.0

    def now_us(self) -> int:
        return START_US + round((self._loop.time() + self.skew_s) * US_PER_S)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
