"""A page of text for programs on this machine: one address, one path, read only.

It listens on a loopback address alone and answers only who names it by one of its three names: a page that a browser
loaded from elsewhere cannot read it, whatever name it gave to 127.0.0.1 (DNS rebinding), and no header invites it
to. A request has a deadline, a size and one answer; slow and many clients cost a bounded number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

Page = Callable[[], Awaitable[str]]

PATH = "/metrics"
HEAD_BYTES_MAX = 8 * 1024
HEAD_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
CONNECTIONS_MAX = 16
_OUTSIDERS = ("cross-site", "same-site")

log = structlog.get_logger("loopback")


class Address(NamedTuple):
    """Where to listen. `host` is 127.0.0.1, localhost or ::1."""

    host: str
    port: int


class _Refused(Exception):
    """An answer that is not the page."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def parse_address(text: str) -> Address | None:
    """Return the address in `HOST:PORT`; None for an empty one. Raises ValueError for one that is not loopback."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "[::1]") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(text)
    return Address(host.strip("[]"), int(port))


class Loopback:
    """Serves one page on one address."""

    def __init__(self, address: Address, page: Page, content_type: str) -> None:
        self._address = address
        self._page = page
        self._content_type = content_type
        self._names = {f"{host}:{address.port}" for host in ("127.0.0.1", "localhost", "[::1]")}
        self._open = 0

    async def loop(self) -> None:
        """Serve until cancelled; an address that is taken is tried again, because it is no reason to stop the daemon."""
        told = False
        while True:
            try:
                server = await asyncio.start_server(
                    self._accept, self._address.host, self._address.port, limit=HEAD_BYTES_MAX
                )
            except OSError as error:
                if not told:
                    log.warning("metrics.not_served", port=self._address.port, reason=error.strerror or str(error))
                    told = True
                await asyncio.sleep(ANSWER_TIMEOUT_S)
                continue
            log.info("metrics.served", host=self._address.host, port=self._address.port)
            async with server:
                await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS_MAX:
                async with asyncio.timeout(HEAD_TIMEOUT_S + ANSWER_TIMEOUT_S):
                    writer.write(await self._answer(reader))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            log.debug("request.abandoned")
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            method = self._check(head)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                body = (await self._page()).encode()
        except asyncio.LimitOverrunError:
            return _message("431 Request Header Fields Too Large", b"", "text/plain")
        except _Refused as refused:
            return _message(refused.status, b"", "text/plain")
        answer = _message("200 OK", body, self._content_type)
        return answer.removesuffix(body) if method == "HEAD" else answer

    def _check(self, head: bytes) -> str:
        """Return the method of a request for the page; raise _Refused for any other."""
        first, *rest = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _Refused("400 Bad Request")
        fields = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest)]
        hosts = [value for name, value in fields if name == "host"]
        if len(hosts) != 1 or hosts[0] not in self._names:
            raise _Refused("403 Forbidden")
        if any(name == "origin" or (name == "sec-fetch-site" and value in _OUTSIDERS) for name, value in fields):
            raise _Refused("403 Forbidden")
        if words[1] != PATH:
            raise _Refused("404 Not Found")
        if words[0] not in ("GET", "HEAD"):
            raise _Refused("405 Method Not Allowed")
        return words[0]


def _message(status: str, body: bytes, content_type: str) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
