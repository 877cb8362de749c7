"""The wire's client: each way in which the network and the cloud fail has its error, and a sentence that names it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import zstandard

from metricsd import client as client_module
from metricsd.client import CloudClient, check_url
from metricsd.config import Sync
from metricsd.errors import (
    AuthError,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    ConfigError,
    HistoryChanged,
    StreamForked,
    UsageError,
)
from metricsd.protocol import PushEventsReply

URL = "https://cloud.example"
CERTIFICATE = Path(__file__).with_name("loopback.pem")
"""A certificate for 127.0.0.1 and its key, which is no secret: made for this test, trusted by nobody."""
FAST = Sync(connect_timeout_s=2.0, request_timeout_s=2.0)
NO_GZIP = httpx.ByteStream(b"no gzip")
Handler = Callable[[httpx.Request], httpx.Response]


@asynccontextmanager
async def answered(handler: Handler, settings: Sync = FAST) -> AsyncIterator[CloudClient]:
    async with CloudClient(URL, "token", settings, transport=httpx.MockTransport(handler)) as client:
        yield client


def problem(status: int, code: str, **more: Any) -> Handler:
    body = {"status": status, "title": "No", "code": code, "detail": "because"} | more
    headers = {"content-type": "application/problem+json"}
    return lambda _: httpx.Response(status, content=msgspec.json.encode(body), headers=headers)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://cloud.example/", URL),
        (" https://Cloud.Example ", URL),
        ("https://host:8443/base/", "https://host:8443/base"),
        ("http://localhost:8400", "http://localhost:8400"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://[::1]:1", "http://[::1]:1"),
    ],
)
def test_an_address_has_a_normal_form(url: str, normal: str) -> None:
    """https anywhere, http for this machine alone."""
    assert check_url(url) == normal


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://cloud.example", "use https"),
        ("http://localhost.evil.example", "use https"),
        ("http://127.0.0.1.evil.example", "use https"),
        ("https://user:hunter2@cloud.example", "leave them out"),
        ("https://user@cloud.example", "leave them out"),
        ("ftp://cloud.example", "https://host"),
        ("cloud.example", "https://host"),
        ("https://", "https://host"),
        ("https://host:99999", "not a URL"),
        ("https://host/?token=1", "before '\\?'"),
        ("", "https://host"),
    ],
)
def test_an_address_that_must_not_be_used_says_why(url: str, said: str) -> None:
    """And never repeats a password."""
    with pytest.raises(UsageError, match=said) as failed:
        check_url(url)
    assert "hunter2" not in str(failed.value)


@pytest.mark.parametrize(
    ("handler", "error", "said"),
    [
        (problem(401, "unauthorized"), AuthError, "metricsd login"),
        (problem(403, "forbidden"), AuthError, "metricsd login"),
        (problem(403, "tenant_suspended"), AuthError, "because.*sync --now"),
        (problem(409, "stream_fork"), StreamForked, "because"),
        (problem(409, "gap"), CloudRefused, "gap"),
        (problem(410, "history_changed"), HistoryChanged, "because"),
        (problem(400, "bad_request"), CloudRefused, "because"),
        (problem(413, "too_large"), CloudRefused, "because"),
        (problem(422, "bad"), CloudRefused, "because"),
        (problem(404, "not_found"), CloudRefused, "because"),
        (problem(429, "slow_down"), CloudBusy, "slow down"),
        (problem(503, "busy"), CloudBusy, "slow down"),
        (problem(500, "internal"), CloudUnreachable, "500"),
        (lambda _: httpx.Response(502, html="<h1>Bad gateway</h1>"), CloudUnreachable, "502"),
        (lambda _: httpx.Response(404, html="<h1>nginx</h1>"), CloudUnreachable, "not a metricsd cloud"),
        (lambda _: httpx.Response(401, html="<h1>proxy</h1>"), CloudUnreachable, "not a metricsd cloud"),
        (lambda _: httpx.Response(407, text="no"), CloudUnreachable, "HTTPS_PROXY"),
        (lambda _: httpx.Response(302, headers={"location": "http://portal"}), CloudUnreachable, "redirect"),
        (lambda _: httpx.Response(200, html="<h1>Sign in</h1>"), CloudUnreachable, "log in first"),
        (lambda _: httpx.Response(200, json={"hello": 1}), CloudUnreachable, "protocol"),
        (lambda _: httpx.Response(200, json=[]), CloudUnreachable, "protocol"),
        (lambda _: httpx.Response(200, content=b"{", headers={"content-type": "application/json"}), CloudUnreachable, "protocol"),
        (lambda _: httpx.Response(200, stream=NO_GZIP, headers={"content-encoding": "gzip"}), CloudUnreachable, "damaged"),
    ],
)  # fmt: skip
async def test_an_answer_becomes(handler: Handler, error: type[CloudError], said: str) -> None:
    """One class for each meaning: log in, heal, wait, give up on the item, or nobody is there."""
    async with answered(handler) as client:
        with pytest.raises(error, match=said) as failed:
            await client.push_events(b"{}")
    assert type(failed.value) is error and "token" not in str(failed.value).replace("new token", "")


@pytest.mark.parametrize("answer", [{"html": "<h1>Sign in</h1>"}, {"text": "ok"}, {"content": b""}])
async def test_a_portals_page_is_no_sign_of_life(answer: dict[str, Any]) -> None:
    """The cheap probe of a quiet daemon gets 200 from whoever is in between: nobody of ours is there."""
    async with answered(lambda _: httpx.Response(200, **answer)) as client:
        with pytest.raises(CloudUnreachable, match="log in first"):
            await client.healthz()
    async with answered(lambda _: httpx.Response(200, json={"status": "ok"})) as client:
        await client.healthz()


async def test_a_redirect_is_not_followed() -> None:
    """The token goes to the address that the user logged in to, and nowhere else."""
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(307, headers={"location": "https://elsewhere.example/"})

    async with answered(handler) as client:
        with pytest.raises(CloudUnreachable, match="redirect"):
            await client.push_events(b"{}")
    assert asked == ["cloud.example"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "17"}, 17.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:29:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({}, 3.5),
    ],
)
async def test_retry_after_is_read_in_both_forms(headers: dict[str, str], seconds: float | None) -> None:
    """A date counts from the server's own Date, because this machine's clock may be wrong."""
    body = msgspec.json.encode({"status": 429, "title": "x", "code": "x", "retry_after_s": 3.5})
    kind = {"content-type": "application/problem+json"}
    async with answered(lambda _: httpx.Response(429, content=body, headers=kind | headers)) as client:
        with pytest.raises(CloudBusy) as failed:
            await client.capabilities()
    assert failed.value.retry_after_s == seconds


async def test_large_bodies_are_compressed_and_fall_back_to_gzip() -> None:
    """zstd first; a server that cannot read it is asked again at once, and remembered."""
    seen: list[str] = []
    body = b'{"x":"' + b"a" * 5000 + b'"}'

    def handler(request: httpx.Request) -> httpx.Response:
        encoding = request.headers["content-encoding"]
        seen.append(encoding)
        unpack = {"zstd": lambda raw: zstandard.ZstdDecompressor().decompress(raw), "gzip": gzip.decompress}
        assert unpack[encoding](request.content) == body and len(request.content) < 200
        if encoding == "zstd" and len(seen) > 1:
            return problem(415, "unsupported_encoding")(request)
        reply = msgspec.json.encode(PushEventsReply(results=[], acked_through=0, server_time=0))
        return httpx.Response(200, content=reply, headers={"content-type": "application/json"})

    async with answered(handler) as client:
        for _ in range(3):
            await client.push_events(body)
    assert seen == ["zstd", "zstd", "gzip", "gzip"]


async def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound counts decompressed bytes."""
    monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", 10_000)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    async with answered(lambda _: httpx.Response(200, content=gzip.compress(b" " * 10**6), headers=headers)) as client:
        with pytest.raises(CloudUnreachable, match="over 10000 bytes"):
            await client.capabilities()


@asynccontextmanager
async def listening(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serve one behaviour on a real socket."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = b'{"status":"ok"}'
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    )
    await writer.drain()


async def said_by(url: str, settings: Sync = FAST) -> str:
    async with CloudClient(url, "token", settings) as client:
        with pytest.raises(CloudUnreachable) as failed:
            await client.capabilities()
    return str(failed.value)


async def test_a_refused_connection_is_named() -> None:
    """Nothing listens there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert "refused" in await said_by(f"http://127.0.0.1:{port}")


async def test_a_name_that_does_not_resolve_is_named() -> None:
    """RFC 6761 keeps .invalid free of names."""
    assert "cannot be resolved" in await said_by("https://metricsd.invalid")


async def test_a_silent_server_is_given_up_in_time() -> None:
    """The deadline covers the whole call, also an answer that trickles."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.02)

    async with listening(trickle) as url:
        assert "did not answer within 0.2 s" in await said_by(url, Sync(request_timeout_s=0.2))


async def test_a_connection_that_breaks_is_named() -> None:
    """Closed before the answer is complete."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{")
        await writer.drain()

    async with listening(hang_up) as url:
        assert "closed in the middle" in await said_by(url)


async def test_a_server_without_tls_is_named() -> None:
    """https to a plain port."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with listening(plain) as url:
        assert "TLS" in await said_by(url.replace("http:", "https:"))


async def test_proxies_are_never_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would carry the token out and back."""

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with listening(answer) as url, CloudClient(url, "token", FAST) as client:
        await client.healthz()


async def test_a_certificate_of_nobody_we_know_is_named_and_can_be_added() -> None:
    """Untrusted: the sentence names the setting that adds an authority; with it the connection works."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    async with listening(answer, tls) as url:
        assert re.search(r"not trusted .* sync\.ca_file", await said_by(url))
        async with CloudClient(url, "token", FAST._replace(ca_file=str(CERTIFICATE))) as client:
            await client.healthz()


async def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """For other hosts the environment's proxy is used."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert "refused" in await said_by("https://metricsd.invalid")


def test_a_certificate_file_that_is_none_is_named(tmp_path: Path) -> None:
    """The setting's name is in the sentence."""
    file = tmp_path / "ca.pem"
    for text in (None, "not a certificate"):
        if text:
            file.write_text(text)
        with pytest.raises(ConfigError, match=r"sync\.ca_file"):
            CloudClient(URL, "token", FAST._replace(ca_file=str(file)))


def test_certificates_are_verified() -> None:
    """By the system's store, names included."""
    context = client_module._tls(FAST)
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "té", "\x00"])
def test_a_damaged_token_is_refused_before_it_is_sent(token: str) -> None:
    """A line break in it would forge headers."""
    with pytest.raises(AuthError, match="copy it again"):
        CloudClient(URL, token, FAST)
