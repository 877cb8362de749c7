"""A TCP proxy on loopback that passes ordinary answers on and holds back a stream, as proxies that buffer do."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from urllib.parse import urlsplit

READ_BYTES = 65536
STREAM = b"text/event-stream"


class HoldingProxy:
    """Forwards to `url`; while `holding`, nothing of an event stream gets through. Runs in the caller's loop."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 0)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.holding = True
        self.held = 0
        self.url = ""

    async def __aenter__(self) -> HoldingProxy:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._open, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection off."""
        for task in self._open:
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        to_reader, to_writer = await asyncio.open_connection(*self._target)
        pipes = [
            asyncio.ensure_future(self._pass_on(reader, to_writer, answers=False)),
            asyncio.ensure_future(self._pass_on(to_reader, writer, answers=True)),
        ]
        try:
            # A cancelled connection would be reported by asyncio as an error of the callback.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(task)
            for pipe in pipes:
                pipe.cancel()
            for end in (writer, to_writer):
                end.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        held = False
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                held = held or (answers and self.holding and STREAM in data)
                if held:
                    self.held += len(data)
                    continue
                writer.write(data)
                await writer.drain()
