"""The wire's client: asks the cloud; `outcomes` says what the answer means.

No redirect is followed, no token leaves over plain HTTP except to this machine itself, and every request has a
deadline and a bound on its answer. It never retries: the engine plans that.
"""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx
import msgspec
import zstandard

from metricsd import __version__
from metricsd.config import Sync
from metricsd.errors import (
    AuthError,
    CloudUnreachable,
    ConfigError,
    Fault,
    UsageError,
)
from metricsd.outcomes import WAITING, Answer, decoded, is_json, not_ours, printable, refusal, unreachable
from metricsd.protocol import (
    PREFIX,
    Capabilities,
    ChangesReply,
    EnrolReply,
    EnrolRequest,
    EraseReply,
    HaveReply,
    HaveRequest,
    HelloReply,
    HelloRequest,
    PolicyReply,
    PushEventsReply,
    PushRecords,
    PushRecordsReply,
)

T = TypeVar("T")

ANSWER_BYTES_MAX = 32 * 1024 * 1024
"""Longest answer that is read, after decompression; a page of the feed is far below."""
COMPRESS_BYTES_MIN = 1024
"""Shorter bodies are sent as they are."""
ZSTD_LEVEL = 1
CONNECTIONS_MAX = 4
EVENT_STREAM = "text/event-stream"
_ZSTD = "zstd"
_GZIP = "gzip"


class ChangesPage(msgspec.Struct, kw_only=True):
    """One page of the feed; items are decoded one by one, so that a bad one does not hide the others."""

    items: list[msgspec.Raw]
    cursor: str
    more: bool
    server_time: int


def check_url(url: str) -> str:
    """Return the cloud's base URL in its normal form; raise UsageError for one that must not be used."""
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"not a URL: {error}: write it as https://host or https://host:port") from error
    if parts.username is not None or parts.password is not None:
        raise UsageError("the URL holds a user name or password: leave them out, `metricsd login` asks for the token")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{_shown(parts)}: not a web address: write it as https://host or https://host:port")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(f"{_shown(parts)}: http would send the token unencrypted: use https (http is for localhost)")
    if parts.query or parts.fragment:
        raise UsageError(f"{_shown(parts)}: the address must end before '?' and '#'")
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))


def is_loopback(host: str) -> bool:
    """Return whether the host is this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Tally:
    """What a client's calls met since somebody last put a new one in: good answers, and the slowest of them."""

    def __init__(self) -> None:
        self.answers = 0
        self.slowest_s = 0.0

    def add(self, took_s: float) -> None:
        """Count a good answer."""
        self.answers += 1
        self.slowest_s = max(self.slowest_s, took_s)


class Certificate(NamedTuple):
    """Who vouches for the cloud, and until when, as the certificate words it."""

    issuer: str
    until: str


class CloudClient:
    """Calls of one cloud with one token. Close it, or use it as an async context manager."""

    def __init__(
        self, url: str, token: str, settings: Sync, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`transport` replaces the network in tests. Raises UsageError, ConfigError (ca_file)."""
        self.url = check_url(url)
        host = urlsplit(self.url).hostname or ""
        self._settings = settings
        self.tally = Tally()
        self._encoding = _ZSTD
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._http = httpx.AsyncClient(
            headers={
                "Authorization": f"Bearer {_clean_token(token)}",
                "User-Agent": f"metricsd/{__version__}",
                "Accept": "application/json",
            },
            timeout=httpx.Timeout(settings.request_timeout_s, connect=settings.connect_timeout_s),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
            follow_redirects=False,
            # A proxy for this machine's own cloud would carry the token out and back.
            trust_env=not is_loopback(host),
            verify=_tls(settings) if self.url.startswith("https:") else False,
            transport=transport,
        )

    async def __aenter__(self) -> CloudClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def healthz(self) -> None:
        """Probe the cloud; raise CloudError when it is not there or not healthy."""
        answer = await self._ask("GET", "/healthz", None)
        if answer.status != HTTPStatus.OK:
            raise refusal(self.url, answer)
        if not is_json(answer):
            raise not_ours(self.url, answer)

    async def enrol(self, name: str, parent: str | None = None) -> EnrolReply:
        """Make this installation a device, by an enrolment token or code; with `parent`, after a fork."""
        return await self._post("/devices", EnrolRequest(name=name, parent=parent), EnrolReply)

    async def capabilities(self) -> Capabilities:
        """Return the server's limits and features."""
        return await self._fetch("GET", "/capabilities", None, Capabilities)

    async def hello(self, request: HelloRequest) -> HelloReply:
        """Compare the stream's position with the cloud's."""
        return await self._post("/hello", request, HelloReply)

    async def push_events(self, body: bytes) -> PushEventsReply:
        """Send a PushEvents body that is encoded already.

        Raises StreamForked, CloudRefused (a status of 409 means a gap: say hello again).
        """
        return await self._fetch("POST", "/events", body, PushEventsReply)

    async def push_unsequenced(self, body: bytes) -> PushEventsReply:
        """Send a PushEvents body whose items have no place in the stream: the cloud knows each by its id alone."""
        return await self._fetch("POST", "/events?unsequenced=1", body, PushEventsReply)

    async def have(self, request: HaveRequest) -> HaveReply:
        """Ask which events are in the cloud already."""
        return await self._post("/have", request, HaveReply)

    async def push_records(self, request: PushRecords) -> PushRecordsReply:
        """Send changes of records."""
        return await self._post("/records", request, PushRecordsReply)

    async def changes(self, cursor: str, limit: int, *, only_records: bool = False) -> ChangesPage:
        """Return the page of the feed behind `cursor` ("" from the start); raise HistoryChanged for a lost cursor."""
        query = {"cursor": cursor, "limit": str(limit)} | ({"only": "records"} if only_records else {})
        return await self._fetch("GET", f"/changes?{httpx.QueryParams(query)}", None, ChangesPage)

    async def everything(self, cursor: str, limit: int) -> ChangesReply:
        """Return a page of all that the user has there, what this device wrote included, to compare with."""
        query = {"cursor": cursor, "limit": str(limit), "own": "1"}
        return await self._fetch("GET", f"/changes?{httpx.QueryParams(query)}", None, ChangesReply)

    async def erase(self, device_id: str) -> EraseReply:
        """Take a device's data back: the cloud forgets what it wrote and revokes it. Doing it again changes nothing."""
        return await self._fetch("DELETE", f"/devices/{device_id}/data", None, EraseReply)

    async def certificate(self) -> Certificate | None:
        """Return what the cloud's certificate says, through a proxy too; None without TLS or where nothing tells.

        Raises CloudUnreachable, which names a certificate that is not trusted.
        """
        try:
            async with (
                asyncio.timeout(self._settings.request_timeout_s),
                self._http.stream("GET", f"{self.url}/healthz") as response,
            ):
                stream = response.extensions.get("network_stream")
                secured = None if stream is None else stream.get_extra_info("ssl_object")
                return None if secured is None else _certificate_of(secured.getpeercert() or {})
        except TimeoutError as error:
            raise CloudUnreachable(f"{self.url} did not answer in time", Fault.TIMEOUT) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise unreachable(self.url, error) from error

    async def policy(self) -> PolicyReply:
        """Return the tenant's conflict policy; raise CloudRefused (404) when it has none."""
        return await self._fetch("GET", "/policy", None, PolicyReply)

    @asynccontextmanager
    async def listen(self, silence_s: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the chunks of the stream of news, for as long as it lasts.

        Raises TimeoutError when nothing at all came for `silence_s`, and CloudError as every call does.
        """
        timeout = httpx.Timeout(self._settings.request_timeout_s, connect=self._settings.connect_timeout_s)
        timeout.read = silence_s
        address = f"{self.url}{PREFIX}/changes/stream"
        try:
            async with self._http.stream("GET", address, headers={"Accept": EVENT_STREAM}, timeout=timeout) as response:
                if response.status_code != HTTPStatus.OK:
                    raise refusal(self.url, Answer(response.status_code, response.headers, await self._read(response)))
                if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
                    raise not_ours(self.url, Answer(response.status_code, response.headers, b""))
                yield response.aiter_bytes()
        except httpx.ReadTimeout as error:
            raise TimeoutError from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise unreachable(self.url, error) from error

    async def _post(self, path: str, request: msgspec.Struct, reply: type[T]) -> T:
        return await self._fetch("POST", path, msgspec.json.encode(request), reply)

    async def _fetch(self, method: str, path: str, body: bytes | None, reply: type[T]) -> T:
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = decoded(self.url, await self._call(method, path, body), reply)
        self.tally.add(loop.time() - began)
        return found

    async def _call(self, method: str, path: str, body: bytes | None) -> Answer:
        answer = await self._ask(method, PREFIX + path, body)
        if answer.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE and self._encoding == _ZSTD and body is not None:
            # A proxy or an older server that cannot read zstd; every server reads gzip.
            self._encoding = _GZIP
            answer = await self._ask(method, PREFIX + path, body)
        if answer.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise refusal(self.url, answer)
        return answer

    async def _ask(self, method: str, path: str, body: bytes | None) -> Answer:
        headers, content = self._packed(body)
        limit = self._settings.request_timeout_s
        try:
            async with (
                asyncio.timeout(limit),
                self._http.stream(method, self.url + path, content=content, headers=headers) as response,
            ):
                return Answer(response.status_code, response.headers, await self._read(response))
        except TimeoutError as error:
            raise CloudUnreachable(f"{self.url} did not answer within {limit:g} s: {WAITING}", Fault.TIMEOUT) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise unreachable(self.url, error) from error

    async def _read(self, response: httpx.Response) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > ANSWER_BYTES_MAX:
                raise CloudUnreachable(
                    f"{self.url} answered with over {ANSWER_BYTES_MAX} bytes: check the address", Fault.NOT_OURS
                )
            parts.append(part)
        return b"".join(parts)

    def _packed(self, body: bytes | None) -> tuple[dict[str, str], bytes | None]:
        if body is None:
            return {}, None
        headers = {"Content-Type": "application/json"}
        if len(body) < COMPRESS_BYTES_MIN:
            return headers, body
        if self._encoding == _ZSTD:
            return headers | {"Content-Encoding": _ZSTD}, self._compressor.compress(body)
        return headers | {"Content-Encoding": _GZIP}, gzip.compress(body, compresslevel=1, mtime=0)


def _certificate_of(found: Mapping[str, Any]) -> Certificate:
    """Return issuer and end of a peer's certificate in the form of `ssl.SSLSocket.getpeercert`."""
    names = {key: value for part in found.get("issuer", ()) for key, value in part}
    issuer = names.get("organizationName") or names.get("commonName") or "unknown"
    return Certificate(printable(str(issuer))[:200], printable(str(found.get("notAfter", "unknown")))[:60])


def _shown(parts: SplitResult) -> str:
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))[:200] or "the address"


def _clean_token(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise AuthError("the token is empty or damaged: copy it again and run `metricsd login URL`")
    return token


def _tls(settings: Sync) -> ssl.SSLContext:
    # The system's trust store, because companies put their own authorities there and nowhere else.
    import truststore

    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.ca_file:
        try:
            context.load_verify_locations(cafile=settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"sync.ca_file: {settings.ca_file} cannot be used ({error}): it must be a readable PEM file"
            ) from error
    return context
