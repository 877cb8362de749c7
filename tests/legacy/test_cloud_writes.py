"""What the older API writes in a cloud are its user's events and records: other devices hear of them, once each."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from metricsd.cloud import older_reads
from metricsd.cloud.access import Scope
from metricsd.decode.older_hooks import ToolCall, read_line
from tests.cloud.support import CloudUnderTest, Device, Json, bearer, event, problem

SESSION = {"session_id": "s-1", "start_time": "2026-01-05T08:00:00Z", "user": "ann"}
LINE = {
    "event_type": "tool_execution", "timestamp": "2026-01-05T08:01:00Z", "tool_name": "Read", "success": True,
    "execution_time_ms": 14, "session_id": "s-1",
}  # fmt: skip
CALL = {
    "event": "x", "timestamp": "2026-01-05T08:01:00Z", "session_id": "s-1", "tool_name": "Read", "execution_time": 14,
}  # fmt: skip


class Client:
    """A client of the older API with a token."""

    def __init__(self, cloud: CloudUnderTest, token: str) -> None:
        self.cloud = cloud
        self.token = token

    async def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.cloud.http.request(method, f"/api/v1/{path}", json=body, headers=bearer(self.token))

    async def data(self, method: str, path: str, body: Any = None) -> Any:
        reply = await self.ask(method, path, body)
        assert reply.status_code < 300, reply.text
        return reply.json()["data"]


async def client_of(cloud: CloudUnderTest, user: str = "ann", tenant: str = "acme") -> tuple[Client, Device]:
    """Return a client and a device of one user."""
    device = await cloud.device(user=user, tenant=tenant)
    return Client(cloud, await cloud.token(Scope.LEGACY, user=user, tenant=tenant)), device


def records(feed: list[Json]) -> list[Json]:
    return [item["record"] for item in feed if "record" in item]


def told(feed: list[Json]) -> list[Json]:
    return [item["event"] for item in feed if "event" in item]


async def test_other_devices_hear_of_it_once(cloud: CloudUnderTest) -> None:
    """Events and the record come with the feed, whose writer is the token's pseudo-device; a retry adds nothing."""
    client, device = await client_of(cloud)
    for _ in range(3):
        await client.data("POST", "sessions", SESSION)
        await client.data("POST", "tool-metrics", CALL)
        await client.data("POST", "tool-metrics/batch", [CALL | {"session_id": "b"}] * 2)
    feed = await device.feed()
    assert [one["kind"] for one in told(feed)] == ["session_started", *["tool_used"] * 3]
    assert {item["device"][:7] for item in feed} == {"legacy-"}
    assert not any("seq" in one or "project" in one for one in told(feed))
    (record,) = records(feed)
    assert (record["id"], record["fields"]) == ("legacy/s-1", {"started_at": 1_767_600_000_000_000})


async def test_a_fact_of_a_laptops_file_is_the_same_event(cloud: CloudUnderTest) -> None:
    """A device that pushes what was posted already is told whose it is."""
    client, device = await client_of(cloud)
    found = read_line(json.dumps(LINE).encode())
    assert isinstance(found, ToolCall)
    await client.data("POST", "tool-metrics", CALL)
    (result,) = (await device.push([event(1, id=found.id(0).hex())]))["results"]
    assert (result["status"], result["device"][:7]) == ("duplicate", "legacy-")


async def test_an_edit_meets_a_devices_own(cloud: CloudUnderTest) -> None:
    """A device on an older base has a conflict with what the client wrote, as with any other device's."""
    client, device = await client_of(cloud)
    await client.data("POST", "sessions", SESSION)
    (record,) = records(await device.feed())
    counted = SESSION | {"end_time": "2026-01-05T09:00:00Z", "workflow_metrics": {"git_commits": 2}}
    await client.data("PUT", "sessions/s-1", counted)
    assert (await client.data("GET", "analytics/sessions/s-1"))["productivity_score"] == 54
    change = {"type": "session", "id": "legacy/s-1", "base_rev": record["rev"], "fields": {"score": 7}}
    (answer,) = await device.put(change)
    assert answer["status"] == "conflict" and answer["current"]["fields"]["ended_at"] == 1_767_603_600_000_000
    (answer,) = await device.put(change | {"base_rev": answer["current"]["rev"]})
    assert answer["status"] == "applied"
    assert (await client.data("GET", "analytics/sessions/s-1"))["productivity_score"] == 7


async def test_what_devices_pushed_is_told_and_taken_back(cloud: CloudUnderTest) -> None:
    """Figures are of all of the user's devices, counted from where they were, and anew once a device took its data back."""
    client, device = await client_of(cloud)
    now = cloud.clock.now_us()
    pushed = [
        event(
            n,
            at=now + n,
            session="cc-1",
            tool="Edit",
            outcome="failed" if n == 1 else "ok",
            duration_ms=10,
            lines_added=2,
        )
        for n in range(1, 5)
    ]
    await device.push(pushed[:3])
    assert (await client.data("GET", "analytics/tools"))["top_tools"] == [
        {"name": "Edit", "count": 3, "averageTime": 10}
    ]
    await device.push(pushed[3:], base_seq=3)
    await client.data("POST", "hooks/tool-usage", {"sessionId": "cc-1", "toolName": "Bash"})
    tools = await client.data("GET", "analytics/tools")
    assert [(one["name"], one["count"]) for one in tools["top_tools"]] == [("Edit", 4), ("Bash", 1)]
    assert tools["error_rates"] == {"Edit": 0.25, "Bash": 0}
    assert [one["tool_name"] for one in await client.data("GET", "tool-metrics/cc-1")].count("Edit") == 4
    session = await client.data("GET", "sessions/cc-1")
    assert session["productivity_metrics"]["lines_changed"] == 8
    board = await client.data("GET", "dashboard/metrics")
    assert board["current_session"]["session_id"] == "cc-1" and board["today_stats"]["tools_used"] == ["Bash", "Edit"]
    reply = await cloud.http.delete(f"/sync/v1/devices/{device.id}/data", headers=bearer(device.token))
    assert reply.status_code == 200
    tools = await client.data("GET", "analytics/tools")
    assert [(one["name"], one["count"]) for one in tools["top_tools"]] == [("Bash", 1)]


async def test_users_of_a_tenant_are_apart(cloud: CloudUnderTest) -> None:
    """A token speaks for its user alone."""
    ann, _ = await client_of(cloud, "ann")
    bob, device = await client_of(cloud, "bob")
    await ann.data("POST", "sessions", SESSION)
    await ann.data("POST", "tool-metrics", CALL)
    assert (await bob.ask("GET", "sessions/s-1")).status_code == 404
    assert await bob.data("GET", "sessions") == []
    assert await bob.data("GET", "tool-metrics/s-1") == []
    assert (await bob.data("GET", "analytics/tools"))["top_tools"] == []
    assert await device.feed() == []


async def test_a_session_goes_with_what_was_said_of_it(cloud: CloudUnderTest) -> None:
    """A tombstone for other devices, no document, and as new when it is created again."""
    client, device = await client_of(cloud)
    await client.data("POST", "sessions", SESSION | {"end_time": "2026-01-05T09:00:00Z", "git_branch": "old"})
    await client.data("POST", "tool-metrics", CALL)
    await client.data("DELETE", "sessions/s-1")
    assert (await client.ask("GET", "sessions/s-1")).status_code == 404
    assert len(await client.data("GET", "tool-metrics/s-1")) == 1
    assert records(await device.feed())[0]["deleted"] is True
    again = await client.data("POST", "sessions", SESSION | {"user": "bob"})
    assert (again["user"], again["git_branch"], "end_time" in again) == ("bob", "main", False)


async def test_pages_hold_what_they_should(cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sessions than are looked at together, by user, by time, and page by page."""
    client, _ = await client_of(cloud)
    monkeypatch.setattr(older_reads, "_PAGE", older_reads._PAGE.replace(str(older_reads.CHUNK), "7"))
    monkeypatch.setattr(older_reads, "CHUNK", 7)
    for n in range(40):
        day = f"2026-0{n // 28 + 1}-{n % 28 + 1:02}"
        await client.data("POST", "sessions", {"session_id": f"p-{n}", "start_time": day, "user": "ab"[n % 2]})
    for query, wanted in (
        ("limit=3&offset=34", range(34, 37)),
        ("user=b&limit=2&offset=16", (33, 35)),
        ("start_date=2026-02-01&end_date=2026-02-03", range(28, 31)),
        ("user=nobody", ()),
    ):
        found = [one["session_id"] for one in await client.data("GET", f"sessions?{query}")]
        assert found == [f"p-{n}" for n in wanted], query


async def test_limits_and_tokens_hold(cloud: CloudUnderTest) -> None:
    """No token, another scope, a body too large or too deep: a problem document; the API's own errors are its own."""
    client, device = await client_of(cloud)
    assert problem(await cloud.http.get("/api/v1/health")) == (401, "no_token")
    assert problem(await Client(cloud, device.token).ask("GET", "health")) == (403, "wrong_scope")
    large = {"metrics": [{"parameters": "x" * (5 * 1024 * 1024)}]}
    assert problem(await client.ask("POST", "tool-metrics/batch", large)) == (413, "too_large")
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    assert problem(await client.ask("POST", "sessions", deep)) == (400, "too_deep")
    for path in ("nothing", "sessions/a/b", "../sync/v1/changes"):
        reply = await client.ask("GET", path)
        assert reply.status_code in (401, 403, 404)
    reply = await client.ask("POST", "sessions", {})
    assert (reply.status_code, reply.json()["error"]) == (400, 'Validation error: "session_id" is required')


async def test_a_secret_is_not_kept(cloud: CloudUnderTest) -> None:
    """A token among a call's parameters is replaced before it is stored."""
    client, _ = await client_of(cloud)
    await client.data("POST", "tool-metrics", CALL | {"parameters": {"api_key": "s3cret"}})
    (shown,) = await client.data("GET", "tool-metrics/s-1")
    assert shown["parameters"] == {"api_key": "[scrubbed]"}
