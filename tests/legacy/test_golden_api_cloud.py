"""Every recorded exchange of the older API, replayed in order against the cloud, on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from metricsd.cloud import sqlite_file
from metricsd.cloud.access import Scope
from tests.cloud.support import CloudUnderTest, bearer
from tests.fakes import FakeClock
from tests.homes import REPOSITORY
from tests.legacy.replay import RECORDINGS, Replay, Reply
from tests.legacy.test_golden_api_daemon import EXEMPT
from tests.postgres import in_database

SHAPE_ONLY: Mapping[str, str] = {
    "migration status on a fresh server": "a cloud has no local fallback, and its mean time is its own",
    "migration status after work": "a cloud has no local fallback, and its mean time is its own",
    "session-end": "productivityScore is computed; the original answered 75 always",
    "session-start empty body": "the user is the token's, not the server's",
    "session-start no body": "the user is the token's, not the server's",
    "session-start empty strings": "the user is the token's, not the server's",
    "read generated hook session": "user and working directory are not the server's",
    "read twice-started session": "the working directory is not the server's",
}
"""Recordings that pin a constant of the original or a fact of its server: compared by keys and types."""
SKIPPED: Mapping[str, str] = {
    "metric with the database down": "a cloud acknowledges nothing that its database does not have",
    "indicators from the real hook file": "a cloud has no home with files of hooks",
    "baseline from the real hook file": "a cloud has no home with files of hooks",
    "baseline from a camelCase file": "a cloud has no home with files of hooks",
}


class Served:
    """A cloud that can be restarted, and whose database can be taken away."""

    def __init__(self, cloud: CloudUnderTest, token: str, patch: pytest.MonkeyPatch) -> None:
        self.cloud = cloud
        self._token = token
        self._patch = patch
        self._lock: sqlite3.Connection | None = None

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        answer = await self.cloud.http.request(method, path, content=body, headers={**headers, **bearer(self._token)})
        data: Any = answer.json() if answer.content else None
        return Reply(answer.status_code, data, answer.headers.get("content-type", ""))

    async def set_up(self, setup: Mapping[str, object]) -> None:
        if setup.get("restart"):
            await self.restart()
        if setup.get("database") == "down":
            await self.take_database()
        if setup.get("database") == "up":
            await self.give_database()

    async def restart(self) -> None:
        """Go on with another process over the same database."""
        await self.cloud.__aexit__()
        self.cloud = self.cloud.another()

    async def take_database(self) -> None:
        if isinstance(self.cloud.place, str):
            await self._allow("false")
            return
        await self.restart()
        self._patch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.1)
        (path,) = self.cloud.tenant_files()
        self._lock = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE", "UPDATE counter SET change = change"):
            self._lock.execute(statement)

    async def give_database(self) -> None:
        if isinstance(self.cloud.place, str):
            await self._allow("true")
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _allow(self, word: str) -> None:
        """Let nobody into the database, or everybody again."""
        assert isinstance(self.cloud.place, str)
        name = self.cloud.place.rpartition("/")[2].partition("?")[0]
        db = await asyncpg.connect(in_database(self.cloud.place, "postgres"))
        try:
            await db.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {word}')
            await db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        finally:
            await db.close()


@pytest.fixture
async def served(cloud_place: Path | str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    cloud = CloudUnderTest(cloud_place, clock=clock)
    await cloud.tenant()
    made = Served(cloud, await cloud.token(Scope.LEGACY), monkeypatch)
    try:
        yield made
    finally:
        await made.give_database()
        with contextlib.suppress(Exception):
            await made.cloud.__aexit__()


async def test_every_recording_is_answered_as_it_should_be(served: Served) -> None:
    """All of them, in order, on a fresh tenant, with restarts and an outage for real; without files of a home."""
    replay = Replay({"<env:USER>": "ann", "<cwd>": ""})
    wrong = []
    for recording in RECORDINGS:
        await served.set_up(recording.get("setup", {}))
        exchange = replay.prepare(recording)
        reply = await served.ask(recording["method"], exchange.path, exchange.headers, exchange.body)
        if exchange.name in SKIPPED:
            assert reply.status == (503 if "down" in exchange.name else 200), exchange.name
            continue
        found = replay.compare(exchange, reply, shape_only=exchange.name in SHAPE_ONLY)
        if found is not None:
            wrong.append(found)
    assert not wrong, "\n".join(wrong)
    names = {one["name"].removeprefix("shared/") for one in RECORDINGS}
    assert names >= set(SHAPE_ONLY) | set(SKIPPED)


def test_what_is_exempt_stands_in_the_documentation_by_name() -> None:
    """Nobody has to read a test to learn which recordings are not answered word for word."""
    text = " ".join((REPOSITORY / "docs" / "api-legacy.md").read_text().split())
    assert [name for name in {*EXEMPT, *SHAPE_ONLY, *SKIPPED} if f"`{name}`" not in text] == []
