"""The cloud behind TLS of its own: by certificate files, versions 1.2 and up, and nothing in the clear on that port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from metricsd.cloud import connection
from metricsd.cloud.app import create_app
from metricsd.cloud.serve import CloudServer, tls_context
from metricsd.errors import UsageError
from tests.cloud.processes import ServerProcess
from tests.cloud.support import CloudUnderTest, bearer, events, ok

PEM = Path(__file__).resolve().parents[1] / "sync" / "loopback.pem"
"""A certificate for 127.0.0.1 with its key, made for tests and trusted nowhere else."""


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(PEM))


async def test_the_command_serves_https(tmp_path: Path) -> None:
    """A device that trusts the certificate pushes; the URL says https; one that does not trust it is not talked to."""
    async with CloudUnderTest(tmp_path / "cloud") as cloud:
        device = await cloud.device()
    arguments = ("--tls-cert", str(PEM), "--tls-key", str(PEM))
    async with ServerProcess(tmp_path / "cloud", tmp_path / "home", *arguments) as process:
        assert process.url.startswith("https://127.0.0.1:")
        body = {"device_id": device.id, "epoch": 1, "base_seq": 0, "events": events(3)}
        async with httpx.AsyncClient(base_url=process.url, verify=trusting(), trust_env=False) as client:
            reply = await client.post("/sync/v1/events", json=body, headers=bearer(device.token))
            assert ok(reply)["acked_through"] == 3
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get("/healthz")


async def test_old_versions_and_plain_text_are_refused(cloud: CloudUnderTest) -> None:
    """TLS 1.1 finds no common version; a request without TLS gets no answer."""
    server = CloudServer(create_app(cloud.backend, cloud.settings), cloud.settings, tls=tls_context(PEM, PEM))
    parts = urlsplit(await server.start())
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 0)) as plain:
        plain.setblocking(False)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(sock=plain, ssl=old, server_hostname=parts.hostname)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert b"200" not in await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await server.stop()


async def test_a_handshake_that_does_not_come_is_given_up(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that connects and says nothing costs a socket for some seconds."""
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    server = CloudServer(create_app(cloud.backend, cloud.settings), cloud.settings, tls=tls_context(PEM, PEM))
    parts = urlsplit(await server.start())
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await server.stop()


@pytest.mark.parametrize("wrong", ["missing", "empty", "key only"])
def test_files_that_cannot_be_used_are_named(tmp_path: Path, wrong: str) -> None:
    """One clear line, before anything listens."""
    file = tmp_path / "cert.pem"
    if wrong == "empty":
        file.write_text("")
    elif wrong == "key only":
        text = PEM.read_text()
        file.write_text(text[text.index("-----BEGIN PRIVATE") :])
    with pytest.raises(UsageError, match=r"--tls-cert .*cert\.pem"):
        tls_context(file, PEM)
