"""One connection of a client: uvicorn's protocol with the bounds that it lacks.

A request's head has a deadline and a size, an answer that is not read has a deadline, a connection above the limit is
answered and closed, and whatever uvicorn would say in plain text is a problem document like every other refusal. Slow
or broken clients cost a socket for some seconds and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from metricsd.cloud.problems import MEDIA_TYPE, body_of, headers_of, refuse
from metricsd.protocol import Problem

HEAD_TIMEOUT_S = 10.0
HEAD_BYTES_MAX = 64 * 1024
DISCARDED_BYTES_MAX = 1024 * 1024
"""How much of a body is read on after its request was answered, so that its sender gets to read the answer."""
IDLE_TIMEOUT_S = 75
"""Longer than the minute that proxies in front keep a connection, so that it is they who close it."""
SEND_TIMEOUT_S = 30.0
"""A client that does not read its answer is dropped after this."""
CONNECTIONS_MAX = 512
"""Beside the streams of news, which are open nearly always."""
CONNECTIONS_SPARE = 64
"""Above the limit this many are still answered with 503; beyond, a connection is closed without a word."""
RETRY_AFTER_S = 5.0
_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, bounded. A subclass of it says how many connections a process holds."""

    connections_max = CONNECTIONS_MAX
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connections_max + CONNECTIONS_SPARE:
            transport.abort()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_request():
            self._forget_head()
            return
        self._head_bytes += len(data)
        if self._discarding():
            if self._head_bytes > DISCARDED_BYTES_MAX:
                self.transport.close()
        elif self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(
                refuse(431, "head_too_large", f"more than {HEAD_BYTES_MAX} bytes", limit="head_bytes_max").problem
            )
        if self._deadline is None and not self.transport.is_closing():
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self.resume_writing()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        # uvicorn picks the app here, once for each request.
        self.app = self.config.loaded_app if len(self.connections) <= self.connections_max else _overloaded
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(SEND_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; uvicorn calls this."""
        self._refuse(refuse(400, "bad_http", "this is not a request of HTTP/1.1").problem)

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _discarding(self) -> bool:
        # The rest of a body whose request was answered early is not a head; its time is bounded all the same.
        return self.cycle is not None and self.cycle.more_body

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _forget_head(self) -> None:
        self._head_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._in_request():
            return
        if self._head_bytes and not self._discarding():
            detail = f"no whole head within {HEAD_TIMEOUT_S:g} s"
            self._refuse(refuse(408, "slow_head", detail, limit="head_timeout_s").problem)
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer where no request is, and close."""
        if self.transport.is_closing() or self._in_request():
            self.transport.close()
            return
        body = body_of(problem)
        head = [
            b"HTTP/1.1 %d %s" % (problem.status, _PHRASES[problem.status]),
            b"content-type: " + MEDIA_TYPE.encode(),
            b"content-length: %d" % len(body),
            b"connection: close",
            b"",
            body,
        ]
        self.transport.write(b"\r\n".join(head))
        self.transport.close()


async def _overloaded(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer a request on a connection that is one too many."""
    problem = refuse(
        503, "busy", "this process has too many connections", limit="connections_max", retry_after_s=RETRY_AFTER_S
    ).problem
    body = body_of(problem)
    named = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close", **headers_of(problem)}
    headers = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
