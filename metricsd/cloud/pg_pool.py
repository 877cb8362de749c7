"""Connections to one PostgreSQL server: a bounded number, each used for one transaction at a time and then clean.

Everything happens inside explicit transactions and every setting is SET LOCAL, so that a pooling proxy may give each
transaction another server connection. A transaction that did not end with its own COMMIT or ROLLBACK (a cancelled
request, a deadline, a broken line) takes its connection with it: nothing of it can reach the next request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import asyncpg

from metricsd.cloud.pg_errors import as_refusal
from metricsd.cloud.problems import busy

WAITING_MAX = 256
"""Requests that wait for a connection; more are refused with 503."""
CONNECT_TIMEOUT_S = 5.0
IDLE_S_MAX = 300.0
"""Shorter than the ten minutes after which proxies drop a silent connection."""
CLIENT_MARGIN_S = 2.0
"""The server's own deadline comes first: its answer leaves the connection usable and says what happened."""

_BROKEN = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # The driver is still in the middle of what the server broke off.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    # The server behind the line is no longer the one to write to; a new connection may find that.
    asyncpg.ReadOnlySQLTransactionError,
)
"""After these nobody knows what the connection is in the middle of, or whether it is of any use."""


class Db(Protocol):
    """What a transaction's work may use."""

    async def fetch(self, query: str, *args: Any) -> list[Any]: ...

    async def fetchrow(self, query: str, *args: Any) -> Any: ...

    async def fetchval(self, query: str, *args: Any) -> Any: ...

    async def execute(self, query: str, *args: Any) -> str: ...

    async def executemany(self, query: str, args: Iterable[Sequence[Any]]) -> None: ...

    async def copy_records_to_table(
        self, table_name: str, *, records: Iterable[Sequence[Any]], columns: Sequence[str]
    ) -> str: ...


class _Idle:
    """A clean connection that waits, and since when."""

    __slots__ = ("connection", "since")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.since = time.monotonic()


class Pool:
    """At most `size` connections to the server at `url`, for one event loop. Nothing connects before it is needed."""

    def __init__(self, url: str, *, size: int, timeout_s: float) -> None:
        self.connects = 0
        self.transactions = 0
        self.losses = 0
        """Connections that ended otherwise than by us: the server may not be the one it was."""
        self._url = url
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(size)
        self._idle: list[_Idle] = []
        self._waiting = 0
        self._held = 0
        self._closed = False
        milliseconds = int(timeout_s * 1000)
        self._limits = (
            f"SET LOCAL statement_timeout = {milliseconds}; SET LOCAL lock_timeout = {milliseconds // 2 or 1};"
            f" SET LOCAL idle_in_transaction_session_timeout = {milliseconds * 2}"
        )

    def __len__(self) -> int:
        return self._held + len(self._idle)

    @asynccontextmanager
    async def transaction(self, opening: str = "", *, mode: str = "") -> AsyncIterator[Db]:
        """Run the block in one transaction that `opening` (SET LOCAL statements) begins; `mode` is behind BEGIN.

        Leaving the block commits, an error rolls back. Raise 503 for what passes by itself.
        """
        try:
            connection = await self._begin(f"BEGIN {mode}; {self._limits}; {opening}")
        except Exception as error:
            raise as_refusal(error) from error
        clean = False
        try:
            yield connection
            # A transaction that an error has ended answers ROLLBACK to COMMIT, and nothing of it is stored.
            ended = await connection.execute("COMMIT")
            if ended != "COMMIT":
                raise busy("the transaction was rolled back")
            clean = True
        except Exception as error:
            clean = await self._roll_back(connection, error)
            raise as_refusal(error) from error
        finally:
            self._give_back(connection, clean)

    async def close(self) -> None:
        """End every connection that waits; those in use end when they are given back."""
        self._closed = True
        while self._idle:
            connection = self._idle.pop().connection
            try:
                await connection.close(timeout=1)
            except (*_BROKEN, asyncpg.PostgresError):
                connection.terminate()

    async def _begin(self, opening: str) -> Any:
        await self._wait_for_turn()
        try:
            while (connection := self._pop_idle()) is not None:
                try:
                    await connection.execute(opening)
                except TimeoutError:
                    connection.terminate()
                    raise
                except _BROKEN:
                    # It died while it waited, and nothing was begun: another one may do.
                    self.losses += 1
                    connection.terminate()
                except BaseException:
                    connection.terminate()
                    raise
                else:
                    break
            else:
                connection = await self._connect(opening)
        except BaseException:
            self._free.release()
            raise
        self._held += 1
        self.transactions += 1
        return connection

    async def _wait_for_turn(self) -> None:
        if self._waiting >= WAITING_MAX:
            raise busy("too many requests wait for the database", "waiting_requests_max")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        finally:
            self._waiting -= 1

    async def _connect(self, opening: str) -> Any:
        self.connects += 1
        connection = await asyncpg.connect(
            self._url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=self._timeout_s + CLIENT_MARGIN_S,
            # A prepared statement would be state of a server connection that the next transaction may not get.
            statement_cache_size=0,
        )
        try:
            await connection.execute(opening)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _pop_idle(self) -> Any:
        while self._idle:
            idle = self._idle.pop()
            if not idle.connection.is_closed() and time.monotonic() - idle.since < IDLE_S_MAX:
                return idle.connection
            self.losses += idle.connection.is_closed()
            idle.connection.terminate()
        return None

    @staticmethod
    async def _roll_back(connection: Any, error: Exception) -> bool:
        """Return whether the connection is clean again."""
        if isinstance(error, _BROKEN) or connection.is_closed() or not connection.is_in_transaction():
            return False
        try:
            return bool(await connection.execute("ROLLBACK") == "ROLLBACK")
        except (*_BROKEN, asyncpg.PostgresError):
            return False

    def _give_back(self, connection: Any, clean: bool) -> None:
        self._held -= 1
        self._free.release()
        if clean and not self._closed and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append(_Idle(connection))
        else:
            self.losses += 1
            connection.terminate()
