"""A TCP proxy on loopback that behaves like a bad network: cuts requests half way, loses answers, cuts answers.

It runs in a thread of its own. Faults are drawn from a seeded generator; `calm()` makes it honest.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from types import TracebackType

READ_BYTES = 65536


class FaultProxy:
    """Forwards to `127.0.0.1:port`; use as a context manager. `faults` counts what it did; `record` keeps what clients sent."""

    def __init__(
        self,
        port: int,
        *,
        seed: int,
        lose_request: float = 0.0,
        lose_answer: float = 0.0,
        cut_answer: float = 0.0,
        record: bool = False,
    ) -> None:
        self._target = port
        self._random = random.Random(seed)
        self._chances = (lose_request, lose_answer, cut_answer)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._record = record
        self.recorded = bytearray()
        self.faults = {"requests": 0, "answers": 0, "cuts": 0}
        self.port = 0

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def calm(self) -> None:
        """Forward everything from now on."""
        self._chances = (0.0, 0.0, 0.0)

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pipes = [
            asyncio.ensure_future(self._requests(reader, to_writer)),
            asyncio.ensure_future(self._answers(to_reader, writer)),
        ]
        try:
            # Ending the proxy cancels its connections; asyncio would report that as an error of the callback.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            for end in (writer, to_writer):
                with contextlib.suppress(Exception):
                    end.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                if self._record:
                    self.recorded += data
                if self._random.random() < self._chances[0]:
                    self.faults["requests"] += 1
                    writer.write(data[: self._random.randrange(len(data))])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                chance = self._random.random()
                if chance < self._chances[1]:
                    # The cloud has committed; the device never hears of it.
                    self.faults["answers"] += 1
                    return
                if chance < self._chances[1] + self._chances[2]:
                    self.faults["cuts"] += 1
                    writer.write(data[: self._random.randrange(len(data))])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
