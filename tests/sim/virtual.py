"""An event loop in virtual time: when all wait for a timer, the clock jumps to it, so that a day passes in a second.

Threads are real: the clock stands still while work is in an executor, and while `working()` is entered because somebody
waits for a thread of another kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from tests.fakes import START_US, FakeClock

US_PER_S = 1_000_000
STEP_S_MIN = 1e-6
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
            # Who waits for less than a float of this size can say would wait at one moment for ever.
            self.now_s += max(timeout, STEP_S_MIN)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop. `asyncio.run(main(), loop_factory=VirtualLoop)` of Python 3.12 is `run` of a Runner in 3.11."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._threads = ThreadPoolExecutor(thread_name_prefix="virtual")

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(  # type: ignore[override]  # typeshed's own signature cannot be written down
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Let a thread do it, and stand still until it has."""
        work = (executor or self._threads).submit(func, *args)
        self._virtual.threads += 1
        future = asyncio.wrap_future(work, loop=self)
        # Behind the one of `wrap_future`: the clock goes on when whoever waits has the result, not just before.
        work.add_done_callback(lambda _: self._call_back(self._ended))
        return future

    def _call_back(self, done: Callable[[], None]) -> None:
        # Work that was given up may end after the loop has.
        with contextlib.suppress(RuntimeError):
            self.call_soon_threadsafe(done)

    def _ended(self) -> None:
        self._virtual.threads -= 1

    def close(self) -> None:
        """End the threads with the loop."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        super().close()

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
