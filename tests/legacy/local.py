"""The older API over a real store in this process, for tests that ask it thousands of times."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from metricsd.clock import Clock, SystemClock
from metricsd.config import find_paths, load_config
from metricsd.legacy.api import Api
from metricsd.legacy.asked import Answer, Request
from metricsd.legacy.kept import Person, Standing, Synced
from metricsd.legacy_local import LocalShelf
from metricsd.storekeeper import StoreKeeper
from metricsd.writer import Writer

T = TypeVar("T")


class QuietHost:
    """A host with nothing around it; `files` are those of the older hooks' folder."""

    def __init__(self) -> None:
        self.person = Person("local", "/work")
        self.files: dict[str, bytes] = {}
        self.down: str | None = None

    async def trouble(self) -> str | None:
        return self.down

    async def standing(self) -> Standing:
        return Standing("local_only", False, True, 0, 0, 0, 0, None, True, False)

    async def sync(self) -> Synced:
        return Synced(True, 0, 0)

    def find_file(self, name: str) -> bytes | None:
        return self.files.get(name)


class Local:
    """One home's store with the API over it."""

    def __init__(self, root: Path, clock: Clock | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.paths = find_paths({"METRICSD_HOME": str(root)})
        config = load_config(self.paths, settings or {}, system_file=root / "none.toml")
        self.clock = clock or SystemClock()
        self.keeper = StoreKeeper(self.paths, config, self.clock)
        self.writer = Writer(self.paths.store)
        self.hurried = 0
        self.shelf = LocalShelf((self.paths, config, self.clock), self.keeper, self.run, on_critical=self._hurry)
        self.host = QuietHost()
        self.api = Api(self.shelf, self.host, self.clock)

    async def run(self, work: Callable[..., T], /, *args: object) -> T:
        """Do work in the store's thread, as the daemon does."""
        return await self.writer.run(self.keeper.call, work, *args)

    async def ask(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None) -> Answer:
        """Ask with a JSON body, or with bytes as they are."""
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        kind = "application/json" if data else ""
        return await self.api.answer(Request(method, f"/api/v1/{path}", query, kind, data))

    async def data(self, method: str, path: str, body: Any = None) -> Any:
        """Return the data of a good answer."""
        answer = await self.ask(method, path, body)
        assert answer.status < 300, answer
        return answer.document["data"]

    async def count(self, sql: str) -> int:
        """Return a number of the store."""
        rows = await self.run(lambda: self.keeper.store.db.execute(sql).fetchone())
        return int(rows[0])

    def _hurry(self) -> None:
        self.hurried += 1


@contextlib.asynccontextmanager
async def local_api(
    root: Path, clock: Clock | None = None, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Local]:
    """Give a home's API, opened."""
    made = Local(root, clock, settings)
    await made.writer.run(made.keeper.open)
    assert made.keeper.trouble is None
    try:
        yield made
    finally:
        made.shelf.close()
        await made.writer.run(made.keeper.close)
        await asyncio.to_thread(made.writer.close)
