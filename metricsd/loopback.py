"""HTTP for programs on this machine, as little of it as they need: heads, bodies and answers, all of them bounded.

Whoever serves listens on a loopback address alone and answers only who names it by one of its three names: a page that
a browser loaded from elsewhere cannot read it, whatever name it gave to 127.0.0.1 (DNS rebinding), and no header
invites it to. A request has a deadline and a size; slow and many clients cost a bounded number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import structlog

HEAD_BYTES_MAX = 8 * 1024
HEAD_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 60.0
"""How long a connection may wait for its next request."""
BODY_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0
RETRY_S = 10.0
"""Between attempts at an address that is taken."""
CONNECTIONS_MAX = 64
DISCARDED_BYTES_MAX = 32 * 1024 * 1024
"""How much of a body that is too large is read on, so that its sender gets to read the answer."""
_TOO_LARGE = "413 Content Too Large"
_OUTSIDERS = ("cross-site", "same-site")
_CHUNK_LINE_BYTES_MAX = 64

log = structlog.get_logger("loopback")


class Address(NamedTuple):
    """Where to listen. `host` is 127.0.0.1, localhost or ::1."""

    host: str
    port: int


class Head(NamedTuple):
    """A request without its body; names of fields are in lower case."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    keeps: bool
    """Whether the connection goes on after the answer."""

    def field(self, name: str) -> str:
        """Return the first field of a name, "" without one."""
        return next((value for key, value in self.fields if key == name), "")


class Reply(NamedTuple):
    """An answer; `status` with its phrase. With `closes` it is the last one of its connection."""

    status: str
    body: bytes
    content_type: str
    closes: bool = False


class Refused(Exception):
    """A request that is answered before anybody looks at what it asks for."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Site(Protocol):
    """What answers requests."""

    @property
    def body_bytes_max(self) -> int:
        """Return the size of the largest body."""
        ...

    async def answer(self, head: Head, body: bytes) -> Reply:
        """Answer one request."""
        ...


def parse_address(text: str) -> Address | None:
    """Return the address in `HOST:PORT`; None for an empty one. Raises ValueError for one that is not loopback."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "[::1]") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(text)
    return Address(host.strip("[]"), int(port))


class Loopback:
    """Serves one site on one address. `what` names it in the log."""

    def __init__(self, address: Address, site: Site, what: str) -> None:
        self._address = address
        self._site = site
        self._what = what
        self._names = {f"{host}:{address.port}" for host in ("127.0.0.1", "localhost", "[::1]")}
        self._open: set[asyncio.Task[None]] = set()

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
                    reason = error.strerror or str(error)
                    log.warning(f"{self._what}.not_served", port=self._address.port, reason=reason)
                    told = True
                await asyncio.sleep(RETRY_S)
                continue
            log.info(f"{self._what}.served", host=self._address.host, port=self._address.port)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                server.close()
                # Connections that wait for their next request would keep a stop waiting.
                for task in self._open:
                    task.cancel()
                await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a connection is served by a task")
        self._open.add(task)
        try:
            if len(self._open) <= CONNECTIONS_MAX:
                wait_s = HEAD_TIMEOUT_S
                while await self._serve_one(reader, writer, wait_s):
                    wait_s = IDLE_TIMEOUT_S
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            log.debug("request.abandoned")
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float) -> bool:
        """Answer one request; return whether the connection goes on."""
        keeps, head = False, None
        try:
            async with asyncio.timeout(wait_s):
                raw = await reader.readuntil(b"\r\n\r\n")
            head = parse_head(raw, self._names)
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _read_body(head, reader, writer, self._site.body_bytes_max)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                reply = await self._site.answer(head, body)
            keeps = head.keeps and not reply.closes
        except asyncio.LimitOverrunError:
            reply = _refusal("431 Request Header Fields Too Large")
        except Refused as refused:
            reply = _refusal(refused.status)
        message = _message(reply, keeps=keeps)
        writer.write(message if head is None or head.method != "HEAD" else message.removesuffix(reply.body))
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await writer.drain()
            if reply.status == _TOO_LARGE:
                # The answer's end is told first: a client that reads only to the end would wait for us, and we for it.
                writer.write_eof()
                await _discard(reader)
        return keeps


def parse_head(raw: bytes, names: set[str]) -> Head:
    """Return a request's head; raise Refused for what is none, and for one that does not name us or is a page's."""
    first, *rest = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused("400 Bad Request")
    fields = tuple((name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest))
    hosts = [value for name, value in fields if name == "host"]
    if len(hosts) != 1 or hosts[0] not in names:
        raise Refused("403 Forbidden")
    if any(name == "origin" or (name == "sec-fetch-site" and value in _OUTSIDERS) for name, value in fields):
        raise Refused("403 Forbidden")
    wishes = next((value.lower() for name, value in fields if name == "connection"), "")
    keeps = "close" not in wishes and (words[2] != "HTTP/1.0" or "keep-alive" in wishes)
    return Head(words[0], words[1], fields, keeps)


async def _read_body(head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> bytes:
    coding = [value.lower() for name, value in head.fields if name == "transfer-encoding"]
    lengths = [value for name, value in head.fields if name == "content-length"]
    if head.field("content-encoding").lower() not in ("", "identity"):
        raise Refused("415 Unsupported Media Type")
    if (coding and lengths) or len(lengths) > 1 or coding not in ([], ["chunked"]):
        # Two ways to say where a request ends are how one request is smuggled into another.
        raise Refused("400 Bad Request")
    if not coding and not lengths:
        return b""
    if lengths and not (lengths[0].isascii() and lengths[0].isdecimal() and len(lengths[0]) < 20):
        raise Refused("400 Bad Request")
    if lengths and int(lengths[0]) > limit:
        raise Refused(_TOO_LARGE)
    if head.field("expect").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    return await reader.readexactly(int(lengths[0])) if lengths else await _read_chunks(reader, limit)


async def _read_chunks(reader: asyncio.StreamReader, limit: int) -> bytes:
    body = bytearray()
    while True:
        line = (await reader.readuntil(b"\r\n")).partition(b";")[0].strip()
        if not line or len(line) > _CHUNK_LINE_BYTES_MAX or line.strip(b"0123456789abcdefABCDEF"):
            raise Refused("400 Bad Request")
        size = int(line, 16)
        if len(body) + size > limit:
            raise Refused(_TOO_LARGE)
        if size == 0:
            break
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise Refused("400 Bad Request")
    # Trailers, each bounded by the reader's limit, all of them by the body's deadline.
    while await reader.readuntil(b"\r\n") != b"\r\n":
        continue
    return bytes(body)


async def _discard(reader: asyncio.StreamReader) -> None:
    left = DISCARDED_BYTES_MAX
    while left > 0 and (data := await reader.read(HEAD_BYTES_MAX)):
        left -= len(data)


class Page:
    """A site of one text, at one path, read only."""

    body_bytes_max = 0

    def __init__(self, path: str, text: Callable[[], Awaitable[str]], content_type: str) -> None:
        self._path = path
        self._text = text
        self._content_type = content_type

    async def answer(self, head: Head, body: bytes) -> Reply:
        """Answer with the text as it is now."""
        if head.target != self._path:
            raise Refused("404 Not Found")
        if head.method not in ("GET", "HEAD"):
            raise Refused("405 Method Not Allowed")
        return Reply("200 OK", (await self._text()).encode(), self._content_type, closes=True)


def _refusal(status: str) -> Reply:
    return Reply(status, b"", "text/plain")


def _message(reply: Reply, *, keeps: bool) -> bytes:
    head = (
        f"HTTP/1.1 {reply.status}\r\nContent-Type: {reply.content_type}\r\nContent-Length: {len(reply.body)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        f"Connection: {'keep-alive' if keeps else 'close'}\r\n\r\n"
    )
    return head.encode() + reply.body
