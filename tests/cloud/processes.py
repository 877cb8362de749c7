"""Real servers for tests: `metricsd cloud serve` as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
"""Far above what anything here takes, on a machine that is busy with other things too."""
_NURSERY = """
import json, os, sys
from metricsd.cli.cloud import cloud
import metricsd.cloud.app, metricsd.cloud.connection, metricsd.cloud.postgres, metricsd.cloud.serve

for order in sys.stdin:
    child = os.fork()
    if child == 0:
        print(json.dumps({"pid": os.getpid()}), flush=True)
        cloud(json.loads(order))
    print(json.dumps({"ended": os.waitpid(child, 0)[1]}), flush=True)
"""


class ServerProcess:
    """`metricsd cloud serve --port 0 --json` over a folder, or a database's URL; killed when the block ends."""

    def __init__(self, place: Path | str, home: Path, *arguments: str, **settings: str) -> None:
        """`arguments` go to the command, `settings` (such as CLOUD_ITEMS_MAX) into its environment."""
        self.url = ""
        self._arguments = arguments
        self._settings = {f"METRICSD_{name}": value for name, value in settings.items()}
        self._database = place if isinstance(place, str) else f"sqlite:{place}"
        self._home = home
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> ServerProcess:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from metricsd.cli.cloud import cloud; cloud()",
            *("serve", "--port", "0", "--json", "--database", self._database, *self._arguments),
            cwd=ROOT,
            env={**os.environ, "METRICSD_HOME": str(self._home), "PYTHONPATH": str(ROOT), **self._settings},
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), DEADLINE_S)
        self.url = json.loads(line)["url"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.end(signal.SIGKILL)

    @property
    def pid(self) -> int:
        """The process, to be looked at from outside."""
        assert self._process is not None
        return self._process.pid

    async def end(self, number: int) -> int:
        """Send a signal; return the exit code."""
        assert self._process is not None and self._process.stdout is not None
        self._process.send_signal(number)
        await asyncio.wait_for(self._process.stdout.read(), DEADLINE_S)
        return await asyncio.wait_for(self._process.wait(), DEADLINE_S)


class Nursery:
    """One `metricsd cloud serve` after the other over one database, each a process of its own that starts at once.

    A process has loaded everything beforehand and is forked for each: fifty starts cost what three do otherwise.
    """

    def __init__(self, place: Path | str, home: Path, **settings: str) -> None:
        self._order = [
            "serve",
            "--port",
            "0",
            "--json",
            "--database",
            place if isinstance(place, str) else f"sqlite:{place}",
        ]
        self._environment = {f"METRICSD_{name}": value for name, value in settings.items()}
        self._home = home
        self._process: asyncio.subprocess.Process | None = None
        self._pid: int | None = None

    async def __aenter__(self) -> Nursery:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _NURSERY),
            cwd=ROOT,
            env={**os.environ, "METRICSD_HOME": str(self._home), "PYTHONPATH": str(ROOT), **self._environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def start(self) -> str:
        """Start a server; return its URL once it answers."""
        assert self._process is not None and self._process.stdin is not None and self._pid is None
        self._process.stdin.write(json.dumps(self._order).encode() + b"\n")
        self._pid = int((await self._said())["pid"])
        return str((await self._said())["url"])

    async def kill(self) -> None:
        """Kill the server with SIGKILL and wait until it is gone."""
        assert self._pid is not None
        os.kill(self._pid, signal.SIGKILL)
        self._pid = None
        assert (await self._said())["ended"] == signal.SIGKILL

    async def _said(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        said: dict[str, Any] = json.loads(await asyncio.wait_for(self._process.stdout.readline(), DEADLINE_S))
        return said

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None and self._process.stdin is not None
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
        self._process.stdin.close()
        await asyncio.wait_for(self._process.communicate(), DEADLINE_S)
