"""Gathers the daemon's figures of this moment, for the control socket and for whoever scrapes the loopback page.

A store that is busy or broken costs its own figures and a bounded wait, never the page.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from metricsd import spool
from metricsd.clock import Clock
from metricsd.config import Paths
from metricsd.disk import size_of
from metricsd.errors import StoreError
from metricsd.governor import Governor
from metricsd.local_metrics import Figures, StoreFigures, read_store, render
from metricsd.store.connection import wal_of
from metricsd.storekeeper import StoreKeeper
from metricsd.sync.realtime import Realtime

STORE_TIMEOUT_S = 5.0
_NS_PER_S = 1e9

Run = Callable[..., Awaitable[Any]]


class Host(Protocol):
    """The daemon itself."""

    @property
    def ready(self) -> bool:
        """Whether everything is up."""
        ...


class Observing:
    """The figures of one daemon. `run` does work in the store's thread."""

    def __init__(
        self, host: Host, paths: Paths, clock: Clock, run: Run, parts: tuple[StoreKeeper, Governor, Realtime]
    ) -> None:
        self._host = host
        self._paths = paths
        self._clock = clock
        self._run = run
        self._keeper, self._governor, self._realtime = parts
        self._began_s = clock.monotonic()

    async def page(self) -> str:
        """Return all figures as text."""
        store = await self._store()
        waiting = await asyncio.to_thread(self._waiting)
        oldest_ns = waiting.oldest_mtime_ns
        return render(
            Figures(
                mode=self._governor.mode,
                forced=self._governor.forced is not None,
                ready=self._host.ready,
                live_stream=self._realtime.state.live,
                logged_in=self._paths.credentials.exists(),
                spool=waiting,
                spool_oldest_s=0.0 if oldest_ns is None else max(time.time() - oldest_ns / _NS_PER_S, 0.0),
                store=store,
                store_bytes=size_of(self._paths.store) + size_of(wal_of(self._paths.store)),
                uptime_s=self._clock.monotonic() - self._began_s,
            )
        )

    async def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer the control socket's verb `metrics`."""
        return {"text": await self.page()}

    async def _store(self) -> StoreFigures | None:
        if self._keeper.trouble is not None:
            return None
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                found: StoreFigures = await self._run(read_store, self._keeper.store)
        except (StoreError, TimeoutError):
            return None
        return found

    def _waiting(self) -> spool.Pending:
        try:
            return spool.pending(self._paths.spool)
        except OSError:
            return spool.Pending(0, 0, None)
