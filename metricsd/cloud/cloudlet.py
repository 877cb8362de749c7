"""What the handlers of one process share: backend, limits, clock, budget, open streams and counters.

A request enters through `token`, which says who asks and counts it, and `body`, which bounds what is sent before it
is held. Handlers of either kind, the framework's and the direct ones, use the same two and nothing else of a request.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from litestar.types import HTTPScope, Receive

from metricsd.clock import Clock
from metricsd.cloud import ingest
from metricsd.cloud.auth import authenticate
from metricsd.cloud.backend import Backend, Scope, Tenant, Token
from metricsd.cloud.budget import Budget, Share
from metricsd.cloud.metrics import Metrics
from metricsd.cloud.problems import busy, refuse
from metricsd.cloud.quota import Quotas
from metricsd.cloud.rate import Rates
from metricsd.cloud.streams import Streams
from metricsd.config import Cloud

BODY_TIMEOUT_S = 30.0
"""A body must have arrived by then: 4 MB at 140 KB/s."""
INFLATE_ASIDE_BYTES = 64 * 1024
"""Larger bodies are inflated and decoded in a thread, so that they do not hold up the others."""
INFLATING_MAX = 2
"""Bodies that are inflated at once: bounds what hostile ones can claim to two times `inflated_bytes_max`."""


READY_TIMEOUT_S = 5.0
"""A database that takes longer to say one word is not ready."""


class Incoming(Protocol):
    """A request, whoever made it: the framework's, or a direct handler's."""

    @property
    def scope(self) -> HTTPScope: ...

    @property
    def receive(self) -> Receive: ...


class Cloudlet:
    """What the handlers share, in one process."""

    def __init__(self, backend: Backend, settings: Cloud, clock: Clock) -> None:
        self.backend = backend
        self.settings = settings
        self.clock = clock
        self.budget = Budget()
        self.metrics = Metrics()
        self.inflating = asyncio.Semaphore(INFLATING_MAX)
        self.streams = Streams(backend, settings, clock)
        self.rates = Rates(backend.meter, settings, clock)
        self.quotas = Quotas(backend.meter, settings, clock)
        self._draining = False

    async def ready(self) -> None:
        """Return when requests are welcome; raise 503 when the database does not answer or a stop has begun."""
        if self._draining:
            raise refuse(503, "draining", "this process is about to stop", retry_after_s=1.0)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self.backend.directory.ready()
        except TimeoutError:
            raise busy(f"the database did not answer within {READY_TIMEOUT_S:g} s") from None

    def drain(self) -> None:
        """Be ready no longer and end the streams, because the process is about to stop."""
        self._draining = True
        self.streams.drain()

    async def token(self, incoming: Incoming, *scopes: Scope, erased_too: bool = False) -> Token:
        """Return the request's token if it is valid and of one of `scopes`; raise 429 when its tenant asks too much."""
        authorization = header_of(incoming.scope, b"authorization")
        token = await authenticate(
            self.backend.directory, authorization, self.clock.now_us(), *scopes, erased_too=erased_too
        )
        await self.count(token.tenant, incoming)
        return token

    async def count(self, tenant: Tenant, incoming: Incoming) -> None:
        """Count a request of a tenant; raise 429 when it asks too much."""
        await self.rates.count(tenant, self._size_of(incoming))

    async def body(self, incoming: Incoming, share: Share) -> bytes:
        """Return the inflated body, held in `share`."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                raw = await ingest.read_raw(incoming.receive, _declared(incoming.scope), self.settings, share)
        except TimeoutError:
            raise refuse(
                408, "slow_body", f"the body did not arrive within {BODY_TIMEOUT_S:g} s", limit="body_timeout_s"
            ) from None
        self.metrics.received(len(raw))
        encoding = header_of(incoming.scope, b"content-encoding")
        if ingest.is_small(raw, encoding, INFLATE_ASIDE_BYTES):
            return ingest.inflate(raw, encoding, self.settings, share)
        async with self.inflating:
            return await asyncio.to_thread(ingest.inflate, raw, encoding, self.settings, share)

    def _size_of(self, incoming: Incoming) -> int:
        """Return what a request's body counts. One that does not say its length counts as the longest allowed."""
        declared = _declared(incoming.scope)
        if declared is None:
            chunked = header_of(incoming.scope, b"transfer-encoding")
            return self.settings.body_bytes_max if chunked else 0
        return min(declared, self.settings.body_bytes_max)


def _declared(scope: HTTPScope) -> int | None:
    length = header_of(scope, b"content-length")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None


def header_of(scope: HTTPScope, name: bytes) -> str:
    """Return the first header of a lower-case name, "" without one."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""
