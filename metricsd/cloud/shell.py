"""The outermost layer of the app: security headers and one measurement per request.

It sees every answer, errors of the framework included, which inner layers do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from metricsd.cloud.metrics import Metrics

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Shell:
    """An ASGI app around another."""

    def __init__(self, inner: ASGIApp, metrics: Metrics, *, on_drain: Callable[[], None]) -> None:
        self._inner = inner
        self._metrics = metrics
        self._on_drain = on_drain

    def drain(self) -> None:
        """Be ready no longer and end what would stay open by itself, because the process is about to stop."""
        self._on_drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connections pass through."""
        if scope["type"] != ScopeType.HTTP:
            await self._inner(scope, receive, send)
            return
        began = time.perf_counter()
        status, took_s = 500, None

        async def send_dressed(message: Message) -> None:
            nonlocal status, took_s
            if message["type"] == "http.response.start":
                # A stream stays open for hours; what counts is how long its answer took to begin.
                status, took_s = message["status"], time.perf_counter() - began
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            await self._inner(scope, receive, send_dressed)
        finally:
            self._metrics.answered(str(scope["method"]), scope["path"], status, took_s or time.perf_counter() - began)
