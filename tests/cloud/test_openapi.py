"""The API's description is true: what it says is served, and a fuzzer that reads it finds nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from metricsd.cloud.access import Scope
from metricsd.cloud.app import create_app
from metricsd.cloud.metrics import ROUTES
from metricsd.cloud.serve import CloudServer
from metricsd.protocol import PREFIX
from tests.cloud.support import CloudUnderTest
from tests.cloud.test_matrix import Party, Watch, found_party

DEADLINE_S = 60


async def test_every_route_is_described_and_counted(cloud: CloudUnderTest) -> None:
    """The document, the labels of /metrics and the app name the same paths, and each needs a token or says not."""
    document = (await cloud.http.get("/schema/openapi.json")).json()
    assert set(document["paths"]) == ROUTES
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            reply = await cloud.http.request(method, path)
            assert reply.status_code == (200 if operation.get("security") == [] else 401), path


async def test_a_fuzzer_finds_the_description_true(cloud: CloudUnderTest, tmp_path: Path) -> None:
    """Statuses, media types and schemas of answers are as described, for valid and invalid requests, never a 5xx.

    One check is left out: a batch whose positions do not grow fits its schema and is refused all the same. The stream
    is left out too, because it never ends (tests/cloud/test_streams.py reads it).
    """
    device = await cloud.device()
    bearer = ("--header", f"Authorization: Bearer {device.token}")
    output, code = await _fuzz(cloud, tmp_path, *bearer, "--exclude-path", f"{PREFIX}/changes/stream")
    assert code == 0, output[-4000:]


@pytest.mark.only_sqlite
@pytest.mark.parametrize("who", ["admin", "stranger", "nobody"])
async def test_a_fuzzer_without_a_device_finds_the_description_true(
    cloud: CloudUnderTest, tmp_path: Path, who: str
) -> None:
    """Every operation, with a token of another scope, with one that never was, and with none at all."""
    await cloud.tenant()
    token = {"admin": await cloud.token(Scope.ADMIN), "stranger": "mdd_" + "x" * 43}.get(who)
    bearer = ("--header", f"Authorization: Bearer {token}") if token else ()
    output, code = await _fuzz(cloud, tmp_path, *bearer)
    assert code == 0, output[-4000:]


@pytest.mark.soak
@pytest.mark.parametrize("bearer", ["device", "admin"])
async def test_a_fuzzer_finds_nothing_in_a_thousand_examples(
    cloud: CloudUnderTest, tmp_path: Path, bearer: str
) -> None:
    """The same with a thousand examples for each operation."""
    device = await cloud.device()
    token = device.token if bearer == "device" else await cloud.token(Scope.ADMIN)
    exclude = ("--exclude-path", f"{PREFIX}/changes/stream")
    output, code = await _fuzz(cloud, tmp_path, "--header", f"Authorization: Bearer {token}", *exclude, examples=1000)
    assert code == 0, output[-4000:]


class Listening:
    """The app, with an ear for what no answer may hold: the marks of a tenant that nobody here speaks for."""

    def __init__(self, app: Any, stranger: Party) -> None:
        self.answers = 0
        self.leaks: list[str] = []
        self._app = app
        self._marks = [mark.encode() for mark in stranger.marks()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        said = b""

        async def heard(message: Any) -> None:
            nonlocal said
            said += message.get("body", b"") + b"".join(b"\n".join(pair) for pair in message.get("headers", ()))
            await send(message)

        await self._app(scope, receive, heard)
        self.answers += 1
        self.leaks += [f"{scope['method']} {scope['path']} holds {mark!r}" for mark in self._marks if mark in said]


async def _fuzz(cloud: CloudUnderTest, folder: Path, *arguments: str, examples: int = 8) -> tuple[str, int | None]:
    """Run schemathesis against a server; return what it printed and its exit code.

    Another tenant lives in the same database meanwhile, and nothing of it is in any answer.
    """
    stranger = await found_party(cloud, Watch(cloud), 7)
    settings = cloud.settings._replace(tenant_requests_per_minute=0)
    app = Listening(create_app(cloud.backend, settings, cloud.clock), stranger)
    server = CloudServer(app, settings)
    url = await server.start()
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/schema/openapi.json", "--no-color"),
        *("--max-examples", str(examples), "--seed", "1", "--exclude-checks", "positive_data_acceptance"),
        *arguments,
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S * max(1, examples // 10))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await server.stop()
    assert app.answers > examples
    assert app.leaks == []
    return output.decode(), process.returncode
