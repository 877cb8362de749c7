"""A proxy that pools transactions, as PgBouncer does: each transaction runs on a server connection picked at random.

Whatever a client leaves behind on a connection (a role, a setting, a prepared statement, a temporary table) meets
another client there, or is missing where the same client comes next. It speaks the protocol's framing (PostgreSQL
documentation, chapter "Frontend/Backend Protocol") and knows no more of it than a transaction's end.
"""

from __future__ import annotations

import asyncio
import random
import struct
from types import TracebackType

import asyncpg

PROTOCOL_3 = 196608
SSL_REQUEST = 80877103
SERVERS = 5
PARAMETERS = {
    "server_version": "16.2",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
}
_STATE = """
SELECT current_user = session_user AND current_setting('search_path') = '"$user", public'
   AND current_setting('statement_timeout') = '0'
   AND NOT EXISTS (SELECT 1 FROM pg_prepared_statements)
   AND NOT EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = pg_my_temp_schema())
   AND NOT EXISTS (SELECT 1 FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')
   AND NOT EXISTS (SELECT 1 FROM pg_listening_channels()) AS clean
"""


class _Server:
    """One connection to the server, past its start-up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, host: str, port: int, database: str, user: str) -> _Server:
        reader, writer = await asyncio.open_connection(host, port)
        body = struct.pack("!i", PROTOCOL_3) + f"user\0{user}\0database\0{database}\0\0".encode()
        writer.write(struct.pack("!i", len(body) + 4) + body)
        server = cls(reader, writer)
        while (await server.message())[0] != b"Z":
            continue
        return server

    async def message(self) -> tuple[bytes, bytes]:
        return await read_message(self.reader)

    async def ask(self, query: str) -> list[bytes]:
        """Run a query and return the bodies of its rows."""
        self.writer.write(frame(b"Q", query.encode() + b"\0"))
        rows = []
        while True:
            kind, body = await self.message()
            if kind == b"D":
                rows.append(body)
            elif kind == b"Z":
                return rows


class PoolingProxy:
    """Listens on loopback; `async with PoolingProxy(host, port, database, user) as proxy: proxy.url`."""

    def __init__(self, host: str, port: int, database: str, user: str) -> None:
        self.url = ""
        self.transactions = 0
        self.moves = 0
        """Transactions that ran on another server connection than their client's last one."""
        self._place = (host, port, database, user)
        self._idle: list[_Server] = []
        self._free = asyncio.Semaphore(SERVERS)
        self._listening: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> PoolingProxy:
        self._idle = [await _Server.connect(*self._place) for _ in range(SERVERS)]
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._listening.sockets[0].getsockname()[1]
        self.url = f"postgresql://{self._place[3]}@127.0.0.1:{port}/{self._place[2]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listening is not None
        self._listening.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for server in self._idle:
            server.writer.close()

    async def dirty(self) -> int:
        """Return how many idle server connections hold any state of a session."""
        return sum([b"t" not in (await server.ask(_STATE))[0][-1:] for server in self._idle])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        said = None
        try:
            await self._welcome(reader, writer)
            last: _Server | None = None
            said = asyncio.create_task(read_message(reader))
            while (await asyncio.wait([said])) and said.result()[0] != b"X":
                said, last = await self._transact(said, reader, writer, last)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._clients.discard(task)
            if said is not None:
                said.cancel()
            writer.close()

    @staticmethod
    async def _welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            size, code = struct.unpack("!ii", await reader.readexactly(8))
            await reader.readexactly(size - 8)
            if code != SSL_REQUEST:
                break
            writer.write(b"N")
        if code != PROTOCOL_3:
            raise ConnectionError("a request to cancel")
        writer.write(frame(b"R", struct.pack("!i", 0)))
        for name, value in PARAMETERS.items():
            writer.write(frame(b"S", f"{name}\0{value}\0".encode()))
        writer.write(frame(b"K", struct.pack("!ii", 1, 1)) + frame(b"Z", b"I"))

    async def _transact(
        self, said: asyncio.Task[tuple[bytes, bytes]], reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        last: _Server | None,
    ) -> tuple[asyncio.Task[tuple[bytes, bytes]], _Server]:  # fmt: skip
        """Relay one transaction; a client that goes away in the middle takes the server connection with it."""
        async with self._free:
            server = self._idle.pop(random.randrange(len(self._idle)))
            self.transactions += 1
            self.moves += last is not None and server is not last
            done = False
            try:
                said = await self._relay(server, said, reader, writer)
                done = True
            finally:
                if not done:
                    server.writer.close()
                    server = await asyncio.shield(_Server.connect(*self._place))
                self._idle.append(server)
            return said, server

    @staticmethod
    async def _relay(
        server: _Server, said: asyncio.Task[tuple[bytes, bytes]], reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> asyncio.Task[tuple[bytes, bytes]]:  # fmt: skip
        """Return the reading of what the client says next, which belongs to its next transaction."""
        heard = asyncio.create_task(server.message())
        try:
            while True:
                await asyncio.wait([said, heard], return_when=asyncio.FIRST_COMPLETED)
                # What the server said comes first: it may have ended the transaction.
                if heard.done():
                    kind, body = heard.result()
                    writer.write(frame(kind, body))
                    await writer.drain()
                    if kind == b"Z" and body == b"I":
                        return said
                    heard = asyncio.create_task(server.message())
                elif said.done():
                    server.writer.write(frame(*said.result()))
                    await server.writer.drain()
                    said = asyncio.create_task(read_message(reader))
        finally:
            heard.cancel()


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return the type and body of the next message."""
    kind = await reader.readexactly(1)
    [size] = struct.unpack("!i", await reader.readexactly(4))
    return kind, await reader.readexactly(size - 4)


def frame(kind: bytes, body: bytes) -> bytes:
    """Return a message as it travels."""
    return kind + struct.pack("!i", len(body) + 4) + body


async def is_clean(db: asyncpg.Connection) -> bool:
    """Return whether a connection holds no state of a session."""
    clean: bool = await db.fetchval(_STATE)
    return clean
