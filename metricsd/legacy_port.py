"""The older API on the daemon's loopback port: requests of one site, as `metricsd.legacy` reads and answers them.

Off by default. Who may call it is decided by `loopback`: programs of this machine, and no web page.
"""

from __future__ import annotations

from http import HTTPStatus

import structlog

from metricsd.clock import Clock
from metricsd.config import Legacy as Settings
from metricsd.legacy.api import Api
from metricsd.legacy.asked import Request
from metricsd.legacy.kept import Host, Shelf
from metricsd.loopback import Head, Reply

CONTENT_TYPE = "application/json; charset=utf-8"

log = structlog.get_logger("legacy")


class LegacySite:
    """The older API of one home."""

    def __init__(self, shelf: Shelf, host: Host, settings: Settings, clock: Clock) -> None:
        self.body_bytes_max = settings.body_bytes_max
        self._api = Api(shelf, host, clock)

    async def answer(self, head: Head, body: bytes) -> Reply:
        """Answer one request."""
        path, _, query = head.target.partition("?")
        method = "GET" if head.method == "HEAD" else head.method
        try:
            found = await self._api.answer(Request(method, path, query, head.field("content-type"), body))
        except Exception:
            # The client learns nothing of the fault; the log has it, and nothing of the request but its method.
            log.exception("request.failed", method=head.method)
            found = self._api.refusal(500, "Internal error: see `metricsd logs`")
        return Reply(f"{found.status} {HTTPStatus(found.status).phrase}", found.encoded(), CONTENT_TYPE)
