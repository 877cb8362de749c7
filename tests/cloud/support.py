"""What the cloud's tests share: a cloud in a folder, devices that talk to it, and events to push."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import httpx

from metricsd.clock import Clock
from metricsd.cloud import tenants
from metricsd.cloud.app import create_app
from metricsd.cloud.backend import Scope
from metricsd.cloud.postgres import PostgresBackend
from metricsd.cloud.registry import AdminBackend
from metricsd.cloud.sqlite import SqliteBackend
from metricsd.config import Cloud
from tests.fakes import FakeClock

Json = dict[str, Any]
_numbers = itertools.count(1)


class CloudUnderTest:
    """The real app over a database, without a socket: SQLite in a folder, or PostgreSQL at a URL."""

    def __init__(self, place: Path | str, settings: Cloud | None = None, clock: Clock | None = None) -> None:
        self.place = place
        self.settings = settings or Cloud()
        self.clock = clock or FakeClock()
        self.backend = backend_at(place, self.settings, self.clock)
        app: Any = create_app(self.backend, self.settings, self.clock)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://cloud", trust_env=False)

    async def __aenter__(self) -> CloudUnderTest:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        await self.backend.close()

    async def tenant(self, name: str = "acme") -> None:
        await tenants.create_tenant(self.backend.directory, name, self.clock)

    async def token(
        self, scope: Scope = Scope.ENROL, *, tenant: str = "acme", user: str = "ann", expires_at: int | None = None
    ) -> str:
        return await tenants.create_token(
            self.backend.directory, tenant, user, scope, self.clock, expires_at=expires_at
        )

    async def device(self, *, tenant: str = "acme", user: str = "ann", name: str = "laptop") -> Device:
        """Make the tenant if need be and enrol a device of the user."""
        if await tenants.find_tenant(self.backend.directory, tenant) is None:
            await self.tenant(tenant)
        reply = await self.post("/devices", {"name": name}, await self.token(tenant=tenant, user=user))
        assert reply.status_code == 200, reply.text
        return Device(self, reply.json())

    async def post(self, path: str, body: Any, token: str) -> httpx.Response:
        return await self.http.post(f"/sync/v1{path}", json=body, headers=bearer(token))

    async def get(self, path: str, token: str) -> httpx.Response:
        return await self.http.get(f"/sync/v1{path}", headers=bearer(token))

    def another(self) -> CloudUnderTest:
        """The same database, served by another process."""
        return CloudUnderTest(self.place, self.settings, self.clock)

    @property
    def folder(self) -> Path:
        """The folder of a cloud on SQLite; a test that asks for it is marked `only_sqlite`."""
        assert isinstance(self.place, Path)
        return self.place

    def tenant_files(self) -> list[Path]:
        return sorted(self.folder.glob("t_*.db"))


def backend_at(place: Path | str, settings: Cloud, clock: Clock) -> AdminBackend:
    """Return the backend over a folder or a database's URL."""
    if isinstance(place, str):
        return PostgresBackend(place, settings, clock)
    return SqliteBackend(place, settings, clock)


class Device:
    """One enrolled device: speaks the protocol and keeps what it was given."""

    def __init__(self, cloud: CloudUnderTest, enrolled: Json) -> None:
        self.cloud = cloud
        self.id: str = enrolled["device_id"]
        self.token: str = enrolled["device_token"]
        self.enrolled = enrolled

    def on(self, cloud: CloudUnderTest) -> Device:
        """The same device, talking to another process of the cloud."""
        return Device(cloud, self.enrolled)

    async def hello(self, **said: Any) -> Json:
        return await self._ok("/hello", {"device_id": self.id, "epoch": 1, "acked_seq": 0} | said)

    async def try_push(
        self, events: list[Json], *, base_seq: int = 0, epoch: int = 1, query: str = ""
    ) -> httpx.Response:
        body = {"device_id": self.id, "epoch": epoch, "base_seq": base_seq, "events": events}
        return await self.cloud.post(f"/events{query}", body, self.token)

    async def push(self, events: list[Json], *, base_seq: int = 0, epoch: int = 1, query: str = "") -> Json:
        return ok(await self.try_push(events, base_seq=base_seq, epoch=epoch, query=query))

    async def put(self, *changes: Json) -> list[Json]:
        """Push changes of records; return the results."""
        results: list[Json] = (await self._ok("/records", {"device_id": self.id, "changes": changes}))["results"]
        return results

    async def changes(self, cursor: str = "", limit: int = 1000, only: str = "") -> Json:
        return ok(await self.try_changes(cursor, limit, only))

    async def try_changes(self, cursor: str = "", limit: int = 1000, only: str = "") -> httpx.Response:
        query = f"cursor={cursor}&limit={limit}" + (f"&only={only}" if only else "")
        return await self.cloud.get(f"/changes?{query}", self.token)

    async def feed(self, limit: int = 1000) -> list[Json]:
        """Return the whole feed from its start, page by page."""
        items: list[Json] = []
        cursor, more = "", True
        while more:
            page = await self.changes(cursor, limit)
            assert len(page["items"]) <= limit
            items += page["items"]
            cursor, more = page["cursor"], page["more"]
        return items

    async def _ok(self, path: str, body: Json) -> Json:
        return ok(await self.cloud.post(path, body, self.token))


def ok(reply: httpx.Response) -> Json:
    """Return the body of a 200."""
    assert reply.status_code == 200, reply.text
    body: Json = reply.json()
    return body


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def event(seq: int = 0, **fields: Any) -> Json:
    """Return an event as it travels, with an id that no other has."""
    made = {"id": f"{next(_numbers):032x}", "at": 1_790_000_000_000_000, "kind": "tool_used", "name": "PostToolUse"}
    return {**made, "app": "claude-code", "seq": seq, **fields}


def events(count: int, *, first: int = 1, **fields: Any) -> list[Json]:
    """Return events at consecutive positions."""
    return [event(first + number, **fields) for number in range(count)]


def statuses(results: list[Json]) -> list[str]:
    return [result["status"] for result in results]


def problem(reply: httpx.Response) -> tuple[int, str]:
    """Return (status, code) of a refusal, which must be a problem document."""
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    body = reply.json()
    assert body["status"] == reply.status_code
    return reply.status_code, body["code"]
