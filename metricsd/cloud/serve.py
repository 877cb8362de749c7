"""The cloud as a server on a socket: uvicorn inside the caller's event loop, with TLS if certificate files are given.

It never touches signals: whoever runs it decides when it ends. A stop first says "not ready", then takes no more
connections, then lets open requests finish for a while before it cuts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from litestar.types import ASGIApp

from metricsd.cloud import connection
from metricsd.cloud.connection import CONNECTIONS_MAX, IDLE_TIMEOUT_S, BoundedProtocol
from metricsd.cloud.shell import Shell
from metricsd.config import Cloud
from metricsd.errors import UsageError

BACKLOG = 256
"""Connections that the kernel keeps while the loop is busy; further ones wait in their clients."""


class CloudServer:
    """Serves an app on one address: `url = await server.start()` ... `await server.stop()`."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Cloud,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare; port 0 lets the system pick one."""
        self._address = (host, port)
        self._settings = settings
        self._app = app
        self._tls = tls
        options: Any = {
            "http": _protocol(CONNECTIONS_MAX + settings.streams_max),
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_keep_alive": IDLE_TIMEOUT_S,
            "timeout_graceful_shutdown": settings.drain_timeout_s,
            "backlog": BACKLOG,
        }
        self._config = uvicorn.Config(app, **options)
        if tls is not None:
            # Our own context: uvicorn's takes every version of TLS that the system knows.
            self._config.load()
            self._config.ssl = tls
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
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def wait(self) -> None:
        """Return when the server has ended; raise what ended it."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Say "not ready" for `cloud.drain_notice_s`, take no more connections, let open requests finish, then end."""
        if self._server is None or self._task is None:
            return
        if isinstance(self._app, Shell):
            self._app.drain()
            # Whoever balances load looks at /readyz every few seconds and must see it before the door is shut.
            await asyncio.sleep(self._settings.drain_notice_s)
        self._server.should_exit = True
        await self._task
        self._server = self._task = None


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS settings of a server from PEM files; raise UsageError that names the file which is wrong."""
    for option, file in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            file.open("rb").close()
        except OSError as error:
            raise UsageError(f"{option} {file}: cannot be read ({error.strerror})") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # The password is asked for by nobody: a server that waits for a terminal does not start.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"--tls-cert {certificate}, --tls-key {key}: not a certificate chain and its key in PEM, without a"
            f" password ({error})"
        ) from error
    return context


class _Uvicorn(uvicorn.Server):
    """uvicorn's server without its signal handlers, telling when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; like uvicorn's own, with a deadline for the handshake of TLS as well."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        tls = self.config.ssl
        self.servers = [
            await loop.create_server(
                self._connect,
                sock=each,
                ssl=tls,
                backlog=self.config.backlog,
                ssl_handshake_timeout=None if tls is None else connection.HEAD_TIMEOUT_S,
            )
            for each in sockets or ()
        ]
        self.started = True
        self.listening.set()

    def _connect(self) -> asyncio.Protocol:
        made: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = made(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _protocol(connections_max: int) -> type[BoundedProtocol]:
    # uvicorn makes connections by calling the class, so what they must know has to be in it.
    return type("CloudProtocol", (BoundedProtocol,), {"connections_max": connections_max})


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
