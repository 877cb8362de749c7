"""The cloud as a server on a socket: uvicorn inside the caller's event loop.

It never touches signals: whoever runs it decides when it ends. Slow clients are bounded: a request's head, its body
and an idle connection each have a deadline, and a stop lets open requests finish for a while before it cuts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from litestar.types import ASGIApp

from metricsd.cloud.shell import Shell
from metricsd.config import Cloud
from metricsd.errors import UsageError

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as HttpProtocol
else:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as HttpProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as HttpProtocol

HEAD_TIMEOUT_S = 10.0
HEAD_BYTES_MAX = 64 * 1024
IDLE_TIMEOUT_S = 75
"""Longer than the minute that proxies in front keep a connection, so that it is they who close it."""
CONNECTIONS_MAX = 512
"""Beside the streams of news, which are open nearly always."""
BACKLOG = 256


class BoundedProtocol(HttpProtocol):
    """uvicorn's protocol with a deadline and a size for the head of a request, which uvicorn itself lacks."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_request():
            self._forget_head()
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self._discarding():
            self.transport.close()
        elif self._deadline is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

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
        if not self._in_request():
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn's server without its signal handlers, telling when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class CloudServer:
    """Serves an app on one address: `url = await server.start()` ... `await server.stop()`."""

    def __init__(self, app: ASGIApp, settings: Cloud, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Prepare; port 0 lets the system pick one."""
        self._address = (host, port)
        self._settings = settings
        self._app = app
        options: Any = {
            "http": BoundedProtocol,
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_keep_alive": IDLE_TIMEOUT_S,
            "timeout_graceful_shutdown": settings.drain_timeout_s,
            "limit_concurrency": CONNECTIONS_MAX + settings.streams_max,
            "backlog": BACKLOG,
        }
        self._config = uvicorn.Config(app, **options)
        self._server: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen and return the URL; raise UsageError when the address cannot be had."""
        listener = _listen(*self._address)
        self._server = _Uvicorn(self._config)
        self._task = asyncio.create_task(self._server.serve([listener]), name="cloud-server")
        waiting = asyncio.create_task(self._server.listening.wait(), name="cloud-listening")
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            await self._task
        host, port = listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def wait(self) -> None:
        """Return when the server has ended; raise what ended it."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Take no more connections, let open requests finish within `cloud.drain_timeout_s`, then end."""
        if self._server is None or self._task is None:
            return
        if isinstance(self._app, Shell):
            self._app.drain()
        self._server.should_exit = True
        await self._task
        self._server = self._task = None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}: choose another --host or --port"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}: choose another --host or --port"
        ) from error
    return listener
