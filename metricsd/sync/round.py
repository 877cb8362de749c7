"""What the steps of one sync round share: the store behind its executor, the cloud, and the report being written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from metricsd.client import CloudClient
from metricsd.config import Sync
from metricsd.protocol import Capabilities
from metricsd.store.connection import Store
from metricsd.store.outbox import Stream
from metricsd.sync.outgoing import Outgoing
from metricsd.sync.report import Report

T = TypeVar("T")


class Run(Protocol):
    """Runs a function of the store on the thread that owns the store, one at a time."""

    async def __call__(self, fn: Callable[..., T], /, *args: object) -> T:
        """Return what `fn(*args)` returns, or raise what it raises."""
        ...


class Round:
    """One round. Mutable, because its steps move the stream and write the report; it lives for one attempt."""

    def __init__(
        self,
        *,
        store: Store,
        run: Run,
        client: CloudClient,
        settings: Sync,
        capabilities: Capabilities,
        outgoing: Outgoing,
        stream: Stream,
        report: Report,
    ) -> None:
        self.store = store
        self.run = run
        self.client = client
        self.settings = settings
        self.capabilities = capabilities
        self.outgoing = outgoing
        self.stream = stream
        self.report = report
        self.refused = 0
        self.again = False
