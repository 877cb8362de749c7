"""ASVS 8.2.2, 8.4.1: twenty tenants, every route, every other tenant's ids, and no foreign byte in any answer.

Each tenant holds a canary of its own in everything that can be written: names, events, records, counters, policy. Every
answer of the whole run is searched for the canaries, device ids and keys of all the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest

from metricsd.cloud.access import Scope
from metricsd.cloud.enrolment import create_code
from metricsd.cloud.policies import set_policy
from metricsd.cloud.tenants import create_tenant
from metricsd.legacy.api import ROUTES, ROUTES_OF_ONE
from tests.cloud.support import CloudUnderTest, Device, Json, bearer, event, ok, problem

TENANTS = 20
TENANTS_SOAK = 200
PREFIX = "/sync/v1"
SHARED_EVENT = "5" * 32
"""An id that every tenant has an event under."""
QUESTIONS = 10
"""What one tenant asks for each other one."""


class Party(NamedTuple):
    """One tenant: its canary, two devices of one user, one token of each other scope, and ids of what it holds."""

    canary: str
    device: Device
    second: Device
    tokens: dict[Scope, str]
    event_id: str
    cursor: str
    rev: str

    def marks(self) -> list[str]:
        """Return what no answer to anybody else may hold."""
        return [self.canary, self.device.id, self.second.id, str(self.device.enrolled["tenant_key"])]


class Watch:
    """Keeps every answer together with the canary of whom it was given to; None for nobody's."""

    def __init__(self, cloud: CloudUnderTest) -> None:
        self.asking: str | None = None
        self.answers: list[tuple[str | None, str, str]] = []
        self.routes: set[tuple[str, str]] = set()
        cloud.http.event_hooks["response"].append(self._keep)

    async def _keep(self, response: httpx.Response) -> None:
        await response.aread()
        said = response.text + repr(response.headers)
        path = response.request.url.path
        template = re.sub(rf"^({PREFIX}/devices)/[^/]+/data$", r"\1/{device_id}/data", path)
        self.routes.add((response.request.method.lower(), template))
        self.answers.append((self.asking, f"{response.request.method} {path}", said))

    def leaks(self, parties: list[Party]) -> list[str]:
        """Return each answer that holds another party's mark."""
        found = []
        for asking, what, said in self.answers:
            foreign = [mark for party in parties if party.canary != asking for mark in party.marks() if mark in said]
            found += [f"{what} for {asking} holds {mark}" for mark in foreign]
        return found


async def found_party(cloud: CloudUnderTest, watch: Watch, number: int) -> Party:
    """Make a tenant and write its canary into all that can be written."""
    canary = watch.asking = f"canary{number:03d}x"
    directory = cloud.backend.directory
    await create_tenant(directory, f"tenant-{canary}", cloud.clock)
    tokens: dict[Scope, str] = {
        scope: await cloud.token(scope, tenant=f"tenant-{canary}", user=f"user-{canary}")
        for scope in Scope if scope is not Scope.DEVICE
    }  # fmt: skip
    device = Device(cloud, ok(await cloud.post("/devices", {"name": canary}, tokens[Scope.ENROL])))
    code, _ = await create_code(directory, f"tenant-{canary}", f"user-{canary}", 60, cloud.clock, actor="test")
    second = Device(cloud, ok(await cloud.post("/devices", {"name": canary}, code)))
    texts = ("session", "tool", "call", "project", "branch", "model", "agent", "subject", "reason", "batch")
    own = event(1, **{name: f"{name}-{canary}" for name in texts}, extra={canary: canary})
    await device.push([own, event(2, id=SHARED_EVENT, project=canary)])
    [put, _] = await device.put(
        {"type": "session", "id": "shared", "fields": {"description": canary}},
        {"type": "session_counters", "id": f"{device.id}/app/{canary}", "fields": {"events": 1}},
    )
    policy = f'version = 1\n# {canary}\ndefault = "latest_wins"\n'.encode()
    await set_policy(cloud.backend, f"tenant-{canary}", policy, "t.toml", cloud.clock)
    await tell_older(cloud, tokens[Scope.LEGACY], canary)
    cursor = (await second.changes())["cursor"]
    return Party(canary, device, second, tokens, str(own["id"]), cursor, put["rev"])


async def tell_older(cloud: CloudUnderTest, token: str, canary: str) -> None:
    """Write the canary into all that the older API takes: a session and a call."""
    session = {
        "session_id": f"older-{canary}", "start_time": "2026-01-05T08:00:00Z", "user": canary, "git_branch": canary,
        "working_directory": f"/w/{canary}", "productivity_metrics": {canary: canary, "agents_used": [canary]},
    }  # fmt: skip
    call = {
        "event": canary, "timestamp": "2026-01-05T08:01:00Z", "session_id": f"older-{canary}", "tool_name": canary,
        "parameters": {canary: canary},
    }  # fmt: skip
    for path, body in (("sessions", session), ("tool-metrics", call)):
        reply = await cloud.http.post(f"/api/v1/{path}", json=body, headers=bearer(token))
        assert reply.status_code == 201, reply.text


async def ask_older(cloud: CloudUnderTest, mine: Party, theirs: Party | None = None) -> None:
    """Ask every route of the older API for one's own session, or for another tenant's, which is nobody's here."""
    session = f"older-{(theirs or mine).canary}"
    headers = bearer(mine.tokens[Scope.LEGACY])
    for method, path in ROUTES_OF_ONE:
        if theirs is None and method == "DELETE":
            continue
        body = (
            {"session_id": "x", "start_time": "2026-01-05T08:00:00Z", "user": mine.canary} if method == "PUT" else None
        )
        reply = await cloud.http.request(method, f"/api/v1/{path}/{session}", json=body, headers=headers)
        if theirs is None:
            assert reply.status_code == 200 and mine.canary in reply.text
        elif path == "tool-metrics":
            assert reply.json()["data"] == []
        else:
            assert reply.status_code == 404
    for method, path in ROUTES:
        body = {"sessionId": session} if path.endswith("session-end") else {}
        if theirs is not None and not path.endswith("session-end"):
            continue
        reply = await cloud.http.request(method, f"/api/v1/{path}", json=body, headers=headers)
        assert reply.status_code < 500
        if theirs is not None and path.endswith("session-end"):
            assert reply.status_code == 404
    if theirs is None:
        for scope, token in mine.tokens.items():
            if scope is not Scope.LEGACY:
                reply = await cloud.http.get(f"/api/v1/sessions/{session}", headers=bearer(token))
                assert problem(reply) == (403, "wrong_scope")
        assert (await cloud.http.get(f"/api/v1/sessions/{session}")).status_code == 401


@contextlib.asynccontextmanager
async def listening(cloud: CloudUnderTest, token: str) -> AsyncIterator[list[bytes]]:
    """Hold a device's stream open over the app itself; give what it is sent."""
    sent: list[bytes] = []
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    headers = [(name.encode(), value.encode()) for name, value in bearer(token).items()]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": f"{PREFIX}/changes/stream", "raw_path": f"{PREFIX}/changes/stream".encode(), "query_string": b"",
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("cloud", 80), "state": {},
    }  # fmt: skip
    transport: Any = cloud.http._transport
    task = asyncio.create_task(transport.app(scope, receive, send))
    try:
        yield sent
    finally:
        over.set()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def ask_own(cloud: CloudUnderTest, party: Party) -> None:
    """Ask every route with every token that the party has; what is answered is its own or nothing."""
    tokens = [*party.tokens.values(), party.device.token]
    for token in tokens:
        for path in ("/capabilities", "/changes", "/changes?only=records", "/policy"):
            assert (await cloud.get(path, token)).status_code in (200, 403)
    for token in party.tokens.values():
        assert problem(await cloud.get("/changes/stream", token)) == (403, "wrong_scope")
    for path in ("/healthz", "/readyz", "/metrics", "/schema/openapi.json", f"{PREFIX}/nope"):
        await cloud.http.get(path, headers=bearer(party.device.token))


async def ask_for(cloud: CloudUnderTest, mine: Party, theirs: Party) -> None:
    """Put another tenant's ids wherever one can be put, with each token that gets that far.

    The documented rule: a body or path naming a device that is not the token's own is refused, 403 where the token is
    bound to one device, 404 where it may name several; anything else of another tenant does not exist here.
    """
    device, token = theirs.device.id, mine.device.token
    for path, body in (
        ("/hello", {"device_id": device, "epoch": 1, "acked_seq": 1, "acked_id": theirs.event_id}),
        ("/events", {"device_id": device, "epoch": 1, "base_seq": 2, "events": [event(3)]}),
        ("/events?unsequenced=1", {"device_id": device, "epoch": 1, "base_seq": 0, "events": [event()]}),
        ("/records", {"device_id": device, "changes": [{"type": "session", "id": "shared"}]}),
        ("/have", {"device_id": device, "ids": [theirs.event_id]}),
        ("/devices", {"name": "x", "parent": device}),
    ):
        assert problem(await cloud.post(path, body, token)) == (403, "wrong_device"), path
    for asking in (token, mine.tokens[Scope.ADMIN]):
        reply = await cloud.http.delete(f"{PREFIX}/devices/{device}/data", headers=bearer(asking))
        assert problem(reply) == (404, "no_device")
    for asking in (token, mine.tokens[Scope.READ]):
        assert problem(await cloud.get(f"/changes?cursor={theirs.cursor}", asking)) == (410, "history_changed")


async def ask_by_ids(cloud: CloudUnderTest, mine: Party, others: list[Party]) -> None:
    """Name all others' events and records in one's own requests: here they do not exist."""
    hidden = [party.event_id for party in others]
    asked = {
        "device_id": mine.device.id,
        "ids": [*hidden, SHARED_EVENT],
        "ranges": [{"first": "0" * 32, "last": "f" * 32}],
    }
    reply = ok(await cloud.post("/have", asked, mine.device.token))
    assert reply["missing"] == hidden and reply["ranges"][0]["count"] >= 4
    changes: list[Json] = [
        {"type": "session", "id": "shared", "base_rev": party.rev, "fields": {"description": "overwritten"}}
        for party in others
    ]
    for result in await mine.device.put(*changes):
        assert result["status"] == "conflict" and result["current"]["fields"] == {"description": mine.canary}


async def run_matrix(cloud: CloudUnderTest, count: int, neighbours: int) -> None:
    """Let each of `count` tenants ask for `neighbours` others; nobody sees or loses anything."""
    watch = Watch(cloud)
    parties = [await found_party(cloud, watch, number) for number in range(count)]
    for mine in parties:
        watch.asking = mine.canary
        await ask_older(cloud, mine)
    async with listening(cloud, parties[0].second.token) as heard:
        for number, mine in enumerate(parties):
            watch.asking = mine.canary
            await ask_own(cloud, mine)
            others = [parties[(number + step) % count] for step in range(1, neighbours + 1)]
            for theirs in others:
                await ask_for(cloud, mine, theirs)
            await ask_older(cloud, mine, others[0])
            await ask_by_ids(cloud, mine, others)
        assert b"event: open" in b"".join(heard)
    assert b"event: change" not in b"".join(heard)
    for mine in parties:
        watch.asking = mine.canary
        texts = [str(item) for item in await mine.second.feed()]
        own = [text for text in texts if mine.canary in text]
        # What the hooks' endpoints were told without a session's id says nothing of anybody.
        assert len(own) >= 7 and all(
            "'app': 'legacy'" in text or "legacy/" in text for text in texts if text not in own
        )
        assert ok(await cloud.http.delete(f"{PREFIX}/devices/{mine.device.id}/data", headers=bearer(mine.second.token)))
    assert len(watch.answers) > count * neighbours * QUESTIONS
    assert watch.leaks(parties) == []
    document = (await cloud.http.get("/schema/openapi.json")).json()
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert watch.routes >= described


async def test_no_tenant_sees_or_touches_another(cloud: CloudUnderTest) -> None:
    """Neither by an id, a cursor, a revision, a code nor a stream; and everybody still has all of their own."""
    await run_matrix(cloud, TENANTS, TENANTS - 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_no_tenant_of_hundreds_sees_or_touches_another(cloud: CloudUnderTest) -> None:
    """More than a process holds open at once, so that what is closed and opened again is mixed up by nobody."""
    await run_matrix(cloud, TENANTS_SOAK, TENANTS - 1)
