"""The API's description is true: what it says is served, and a fuzzer that reads it finds nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from metricsd.cloud.app import create_app
from metricsd.cloud.metrics import ROUTES
from metricsd.cloud.serve import CloudServer
from tests.cloud.support import CloudUnderTest

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
    """Statuses, media types and schemas of answers are as described, for valid and invalid requests.

    One check is left out: a batch whose positions do not grow fits its schema and is refused all the same.
    """
    pytest.importorskip("schemathesis")
    device = await cloud.device()
    app: Any = create_app(cloud.backend, cloud.settings, cloud.clock)
    server = CloudServer(app, cloud.settings)
    url = await server.start()
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/schema/openapi.json"),
        *("--header", f"Authorization: Bearer {device.token}", "--no-color"),
        *("--exclude-path", "/sync/v1/changes/stream"),  # it never ends
        *("--max-examples", "10", "--seed", "1", "--exclude-checks", "positive_data_acceptance"),
        cwd=tmp_path,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    await server.stop()
    assert process.returncode == 0, output.decode()[-4000:]
