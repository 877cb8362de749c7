"""Real servers for tests: `metricsd cloud serve` as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0


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
