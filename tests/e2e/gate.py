"""The way to a cloud, with a switch: open, refusing, resetting, silent, slow, or answering in somebody else's name.

It runs in a thread of its own on a loopback port that stays the same. Turning the switch cuts what is open, unless the
fault is silence or slowness: then open connections fall silent or slow too, as on a network whose other end is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import Counter
from types import TracebackType
from typing import NamedTuple

READ_BYTES = 65536
HEAD_BYTES_MAX = 65536


class Open(NamedTuple):
    """Everything goes through."""


class Refusing(NamedTuple):
    """Nobody listens."""


class Resetting(NamedTuple):
    """Connections are made and cut."""


class Silent(NamedTuple):
    """Connections are made, bytes are taken, nothing comes back."""


class Slow(NamedTuple):
    """Each answer that needs the cloud's database begins so much later; probes are answered at once."""

    seconds: float


class Answering(NamedTuple):
    """Every request gets this answer."""

    status: int
    body: bytes
    headers: str = "content-type: text/plain"


Fault = Open | Refusing | Resetting | Silent | Slow | Answering


class Gate:
    """Forwards to `127.0.0.1:target`; use as a context manager. `requests` counts the paths that were asked for."""

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.port = 0
        self.requests: Counter[str] = Counter()
        self._tls = tls
        self._fault: Fault = Open()
        self._loop = asyncio.new_event_loop()
        self._turned = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Gate:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def turn(self, fault: Fault, *, tls: ssl.SSLContext | None = None) -> None:
        """Behave so from now on; `tls` is the certificate that new connections see."""
        self._call(self._turn(fault, tls))

    def _call(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _turn(self, fault: Fault, tls: ssl.SSLContext | None) -> None:
        before, self._fault = self._fault, fault
        listens = self._server is not None
        if tls is not None and tls is not self._tls:
            self._tls, listens = tls, False
        if isinstance(fault, Refusing) or not listens:
            await self._close_server()
        if not isinstance(fault, Silent | Slow) and not isinstance(before, Slow):
            self._cut()
        if not isinstance(fault, Refusing) and self._server is None:
            await self._listen()
        self._turned.set()
        self._turned = asyncio.Event()

    async def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _cut(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):
                sock = writer.get_extra_info("socket")
                if sock is not None:
                    # A reset, not an orderly end.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()

    async def _end(self) -> None:
        await self._close_server()
        self._cut()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(
                ConnectionError, asyncio.CancelledError, ssl.SSLError, asyncio.IncompleteReadError
            ):
                await self._serve(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match self._fault:
            case Resetting() | Refusing():
                return
            case Answering():
                await self._answer(reader, writer)
            case _:
                to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
                self._writers.add(to_writer)
                asked = asyncio.Event()
                pipes = [
                    asyncio.ensure_future(self._requests(reader, to_writer, asked)),
                    asyncio.ensure_future(self._answers(to_reader, writer, asked)),
                ]
                try:
                    await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pipe in pipes:
                        pipe.cancel()
                    self._writers.discard(to_writer)
                    to_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                if self._note(data) not in ("", "/healthz"):
                    asked.set()
                await self._pass(data, writer)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                if asked.is_set() and isinstance(self._fault, Slow):
                    asked.clear()
                    await asyncio.sleep(self._fault.seconds)
                await self._pass(data, writer)

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while isinstance(self._fault, Silent):
            await self._turned.wait()
        writer.write(data)
        await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self._note(head)
        fault = self._fault
        if isinstance(fault, Answering):
            said = f"HTTP/1.1 {fault.status} So\r\n{fault.headers}\r\ncontent-length: {len(fault.body)}\r\nconnection: close\r\n\r\n"
            writer.write(said.encode() + fault.body)
            await writer.drain()
            writer.write_eof()
            await reader.read(HEAD_BYTES_MAX)

    def _note(self, data: bytes) -> str:
        """Count a request and return its path; "" for bytes that begin none."""
        parts = data.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/"):
            return ""
        path = parts[1].split(b"?")[0].decode("ascii", "replace")
        self.requests[path] += 1
        return path
