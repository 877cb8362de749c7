"""The one thread that touches the store while the daemon runs.

SQLite calls block and the store belongs to one thread at a time, so everything about it is handed to this thread
and awaited; the event loop never waits for a disk. Work is done in the order in which it was handed in, and work
that has begun ends even if its caller was cancelled, so a transaction is never cut in half. Whatever SQLite raises there,
in a transaction or outside, leaves it as StoreUnavailable or StoreCorrupt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from metricsd.store.connection import sqlite_translated

T = TypeVar("T")


class Writer:
    """A single worker thread for the store at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def run(self, work: Callable[..., T], /, *args: object) -> T:
        """Do `work(*args)` in the thread and return what it returns or raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.call, work, *args)

    def call(self, work: Callable[..., T], /, *args: object) -> T:
        """Do `work(*args)` at once, in the caller's thread, with the same errors."""
        with sqlite_translated(self._path):
            return work(*args)

    def close(self) -> None:
        """Wait for the work in hand, drop what has not begun, and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
