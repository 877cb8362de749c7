"""The older API under `/api/v1` of a cloud: a token of scope `legacy`, and the limits of every other request.

What stops a request before the API sees it (no token, a wrong scope, a limit, a database that is away) is a problem
document as on every other route; what is wrong with the request itself is said in the API's own envelope.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from metricsd.clock import US_PER_MS
from metricsd.cloud.access import Scope as TokenScope
from metricsd.cloud.cloudlet import Cloudlet, header_of
from metricsd.cloud.direct import Call, refusal_of
from metricsd.cloud.older_api import DOWN, CloudHost, CloudShelf, Memories
from metricsd.cloud.problems import Refused, refuse
from metricsd.cloud.shape import check_shape
from metricsd.legacy.answers import envelope
from metricsd.legacy.api import Api
from metricsd.legacy.asked import PREFIX, Answer, Request

JSON = b"application/json; charset=utf-8"
PATH_BYTES_MAX = 64 * 1024
_READING = ("GET", "HEAD")

log = structlog.get_logger("cloud")


class OlderMount:
    """An ASGI app in front of another that answers the older API itself."""

    def __init__(self, inner: ASGIApp, cloudlet: Cloudlet) -> None:
        self._inner = inner
        self._cloudlet = cloudlet
        self._mean_ms = 0.0
        self._memories = Memories()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != ScopeType.HTTP or not (scope["path"] == PREFIX or scope["path"].startswith(f"{PREFIX}/")):
            await self._inner(scope, receive, send)
            return
        asked: Any = scope
        status, headers, body = await self._answer(asked, receive)
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        shown = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": shown, "more_body": False})

    async def _answer(self, scope: HTTPScope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        try:
            return await self._handle(scope, receive)
        except Refused as refusal:
            if refusal.problem.status == 503 and scope["path"] == f"{PREFIX}/health":
                # Not even the token can be looked up; whoever watches this path is told so in its own words.
                text = f"Health check failed: {DOWN}"
                ending = envelope({"success": False, "error": text}, now_ms=self._cloudlet.clock.now_us() // US_PER_MS)
                return 503, [(b"content-type", JSON)], Answer(503, ending).encoded()
            return refusal_of(refusal.problem)
        except Exception as error:
            # The client learns nothing of the fault; the log has it. Nothing of the request is logged but its kind.
            log.exception("cloud.failed", method=scope["method"], path=PREFIX, error=type(error).__name__)
            return refusal_of(refuse(500, "internal").problem)

    async def _handle(self, scope: HTTPScope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        cloudlet = self._cloudlet
        call = Call(scope, receive)
        token = await cloudlet.token(call, TokenScope.LEGACY)
        reads = scope["method"] in _READING
        with cloudlet.budget.share() as share:
            body = b"" if reads else await cloudlet.body(call, share)
            kind = header_of(scope, b"content-type")
            if kind.startswith("application/json"):
                check_shape(body, cloudlet.settings)
            if not reads:
                await cloudlet.quotas.check(token.tenant)
            request = Request(
                "GET" if reads else scope["method"],
                _raw_path(scope),
                scope["query_string"].decode("latin-1"),
                kind,
                body,
            )
            memory = self._memories.of(token)
            shelf = CloudShelf(cloudlet.backend, token, memory, cloudlet.clock)
            host = CloudHost(cloudlet.backend, token, cloudlet.clock)
            api = Api(shelf, host, cloudlet.clock, memory.answers)
            api.mean_ms = self._mean_ms
            answer = await api.answer(request)
            self._mean_ms = api.mean_ms
        if shelf.wrote:
            cloudlet.streams.wake(token.tenant)
        return answer.status, [(b"content-type", JSON)], answer.encoded()


def _raw_path(scope: HTTPScope) -> str:
    """Return the path as it came, escaped: only so can an escaped slash be told from one that parts."""
    raw = scope.get("raw_path")
    text = raw.partition(b"?")[0].decode("latin-1") if raw else quote(scope["path"])
    if len(text) > PATH_BYTES_MAX:
        raise refuse(400, "bad_request", "the path is too long")
    return text
