"""What is written through the older API are events and records like any other: once each, counted, to be synced."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from metricsd.decode.older_hooks import ToolCall, read_line, session_events
from metricsd.ids import EventId, Occurrences
from metricsd.model import Event
from metricsd.store import records, session_totals
from metricsd.store.connection import wal_of
from metricsd.store.events import Identified
from metricsd.store.summary import reading
from tests.fakes import FakeClock
from tests.legacy.local import Local, local_api

SESSION = {"session_id": "s-1", "start_time": "2026-01-05T08:00:00Z", "user": "ann"}
CALL = {
    "event": "tool_usage", "timestamp": "2026-01-05T08:01:00Z", "session_id": "s-1", "tool_name": "Read",
    "execution_time": 14, "success": True,
}  # fmt: skip
LINE = {
    "event_type": "tool_execution", "timestamp": "2026-01-05T08:01:00Z", "tool_name": "Read", "success": True,
    "execution_time_ms": 14, "user": "ann", "session_id": "s-1", "file_path": "/p/a.py",
}  # fmt: skip
EVENTS = "SELECT count(*) FROM event"


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    async with local_api(tmp_path / "home") as made:
        yield made


async def ids(local: Local) -> set[str]:
    rows = await local.run(lambda: local.keeper.store.db.execute("SELECT id FROM event").fetchall())
    return {row[0].hex() for row in rows}


async def test_a_call_has_the_id_of_the_same_fact_in_a_file(local: Local) -> None:
    """Posted to either endpoint, or read from the hooks' file: one event."""
    found = read_line(json.dumps(LINE).encode())
    assert isinstance(found, ToolCall)
    in_file = found.id(Occurrences().next(found.fact)).hex()
    await local.data("POST", "tool-metrics", CALL)
    assert await ids(local) == {in_file}
    reply = await local.ask("POST", "hooks/tool-metrics", LINE | {"auth_token": "secret"})
    assert reply.status == 201 and reply.document["data"]["id"].replace("-", "") == in_file
    assert await ids(local) == {in_file}


async def test_a_hooks_own_id_decides_whatever_else_is_said(local: Local) -> None:
    """The same `enhanced_activity.id` at the same time is the same call, in a file too; another id is another call."""
    line = LINE | {"enhanced_activity": {"id": "activity_1_abc"}}
    for duration in (14, 15):
        assert (await local.ask("POST", "hooks/tool-metrics", line | {"execution_time_ms": duration})).status == 201
    found = read_line(json.dumps(line).encode())
    assert isinstance(found, ToolCall)
    assert await ids(local) == {found.id(0).hex()}
    await local.ask("POST", "hooks/tool-metrics", LINE | {"enhanced_activity": {"id": "activity_2_abc"}})
    assert len(await ids(local)) == 2


async def test_a_session_has_the_id_of_the_same_fact_in_a_file(local: Local) -> None:
    """The start of a session is one event, by either endpoint or from the hooks' file."""
    line = {"event": "session_start", "timestamp": "2026-01-05T08:00:00Z", "session_id": "s-1", "user": "ann"}
    note = read_line(json.dumps(line).encode())
    await local.data("POST", "sessions", SESSION)
    await local.ask("POST", "hooks/session-start", {"session_id": "s-1", "start_time": "2026-01-05T08:00:00Z"})
    await local.ask("POST", "hooks/session-start", {"sessionId": "s-1"})
    assert await ids(local) == {event_id.hex() for event_id, _ in session_events(note)}  # type: ignore[arg-type]


async def test_a_retry_is_one_call_and_two_equal_ones_of_a_batch_are_two(local: Local) -> None:
    """A whole body again changes nothing; what differs in anything is another call; without a time nothing is merged."""
    for _ in range(3):
        await local.data("POST", "tool-metrics", CALL)
    assert await local.count(EVENTS) == 1
    await local.data("POST", "tool-metrics", CALL | {"parameters": {"a": 1}})
    await local.data("POST", "tool-metrics", CALL | {"parameters": {"a": 2}})
    assert await local.count(EVENTS) == 3
    batch = [CALL | {"session_id": "b"}, CALL | {"session_id": "b"}]
    for _ in range(3):
        done = await local.data("POST", "tool-metrics/batch", batch)
        assert (done["processed"], done["successful"]) == (2, 2)
    assert await local.count(EVENTS) == 5
    for _ in range(3):
        await local.data("POST", "hooks/tool-usage", {"sessionId": "u", "toolName": "Read"})
        await local.ask("POST", "hooks/tool-metrics", {"session_id": "u", "tool_name": "Read"})
    assert await local.count(EVENTS) == 11


async def test_an_answer_is_given_after_the_commit_is_on_disk(local: Local) -> None:
    """The commit of an acknowledged write is a FULL one."""
    await local.run(local.keeper.store.db.execute, "PRAGMA synchronous = NORMAL")
    await local.data("POST", "tool-metrics", CALL)
    assert await local.count("PRAGMA synchronous") == 2


async def test_what_is_written_counts_and_waits_for_the_cloud(local: Local) -> None:
    """Totals, the session's record with its stamps, and the user's edit over it."""
    await local.data(
        "POST", "sessions", SESSION | {"end_time": "2026-01-05T09:00:00Z", "workflow_metrics": {"git_commits": 2}}
    )
    await local.data("POST", "tool-metrics", CALL)
    await local.data("POST", "tool-metrics", CALL | {"success": False})
    with reading(local.paths.store) as summary:
        (total,) = session_totals.read(summary)
        assert sum(cell.n for cell in summary.cells("tool") if cell.tool == "Read") == 2
    assert (total.app, total.id, total.tool_calls, total.tool_failures) == ("legacy", "s-1", 2, 1)
    assert (total.score, total.ended_at) == (54.0, 1_767_603_600_000_000)
    (pending,) = await local.run(records.pending, local.keeper.store, 10)
    assert (pending.type, pending.id) == ("session", "legacy/s-1")
    assert set(pending.stamps) == {"started_at", "ended_at", "total_duration_ms", "score"}
    assert not {"user", "project", "branch"} & set(pending.changed)
    assert local.hurried >= 2


async def test_a_deleted_session_is_gone_and_its_calls_stay(local: Local) -> None:
    """As a tombstone that syncs; created again it is as new."""
    await local.data("POST", "sessions", SESSION | {"git_branch": "old", "end_time": "2026-01-05T09:00:00Z"})
    await local.data("POST", "tool-metrics", CALL)
    await local.data("DELETE", "sessions/s-1")
    assert (await local.ask("GET", "sessions/s-1")).status == 404
    assert (await local.ask("DELETE", "sessions/s-1")).status == 404
    assert len(await local.data("GET", "tool-metrics/s-1")) == 1
    assert await local.data("GET", "sessions") == []
    assert await local.count("SELECT count(*) FROM legacy_extra WHERE kind = 'session'") == 0
    again = await local.data("POST", "sessions", SESSION | {"user": "bob"})
    assert (again["user"], again["git_branch"], "end_time" in again) == ("bob", "main", False)


async def test_a_session_of_another_tool_can_be_read(local: Local) -> None:
    """Its own counters stand where no client of this API said anything."""
    at = 1_767_600_000_000_000
    made = [
        Event(
            at=at + n,
            kind="tool_used",
            name="PostToolUse",
            app="claude-code",
            session="cc-1",
            tool="Edit",
            lines_added=3,
        )
        for n in range(4)
    ]
    items = [Identified(EventId(bytes([n]) * 16), event) for n, event in enumerate(made)]
    await local.run(local.keeper.take, items, [])
    session = await local.data("GET", "sessions/cc-1")
    assert session["productivity_metrics"]["commands_executed"] == 4
    assert session["productivity_metrics"]["lines_changed"] == 12
    assert (session["user"], session["start_time"]) == ("local", "2026-01-05T08:00:00.000Z")
    assert [one["session_id"] for one in await local.data("GET", "sessions?user=local")] == ["cc-1"]
    assert [one["tool_name"] for one in await local.data("GET", "tool-metrics/cc-1")] == ["Edit"] * 4
    await local.data("POST", "hooks/tool-usage", {"sessionId": "cc-1", "toolName": "Bash"})
    assert (await local.data("GET", "sessions/cc-1"))["productivity_metrics"]["lines_changed"] == 12
    assert [one["session_id"] for one in await local.data("GET", "sessions")] == ["cc-1"]
    assert len(await local.data("GET", "tool-metrics/cc-1")) == 5
    body = {"session_id": "cc-1", "start_time": "2026-01-05T07:00:00Z", "user": "ann"}
    assert (await local.data("PUT", "sessions/cc-1", body))["user"] == "ann"
    assert [one["user"] for one in await local.data("GET", "sessions")] == ["ann"]
    assert await local.count("SELECT count(*) FROM event") == 5


async def test_secrets_and_size(local: Local) -> None:
    """A token in what a client says is not kept, and what is too long is not either; the call counts all the same."""
    told = await local.data("POST", "tool-metrics", CALL | {"parameters": {"auth_token": "s3cret-value-here"}})
    assert told["parameters"] == {"auth_token": "s3cret-value-here"}
    assert await local.count("SELECT count(*) FROM legacy_extra WHERE body LIKE '%s3cret%'") == 0
    big = CALL | {"session_id": "big", "parameters": "x" * 100_000}
    await local.data("POST", "tool-metrics", big)
    (shown,) = await local.data("GET", "tool-metrics/big")
    assert "parameters" not in shown and shown["execution_time"] == 14
    reply = await local.ask("POST", "sessions", SESSION | {"productivity_metrics": {"x": "y" * 100_000}})
    assert reply.status == 413


async def test_figures_are_remembered_until_something_is_written(local: Local) -> None:
    """Nothing is counted twice while the store is as it was, and nothing old is told once it is not."""
    await local.data("POST", "hooks/tool-usage", {"sessionId": "t", "toolName": "Read"})
    store = local.paths.store
    for path in (store, wal_of(store)):
        os.utime(path, ns=(0, 1_790_000_000_000_000_000))
    first = await local.shelf.figures(7, uses=True)
    assert await local.shelf.figures(7, uses=True) is first
    assert await local.shelf.figures(8, uses=True) is not first
    await local.data("POST", "hooks/tool-usage", {"sessionId": "t", "toolName": "Read"})
    for path in (store, wal_of(store)):
        os.utime(path, ns=(0, 1_790_000_001_000_000_000))
    again = await local.shelf.figures(7, uses=True)
    assert [sum(cell.n for cell in one.uses) for one in (first, again)] == [1, 2]


async def test_figures_are_of_what_is_stored(tmp_path: Path) -> None:
    """The dashboards' constants are gone: true counts, shares and rates after every call."""
    async with local_api(tmp_path / "home", FakeClock()) as local:
        await _look_at_figures(local)


async def _look_at_figures(local: Local) -> None:
    for n, (tool, good) in enumerate((("Read", True), ("Read", True), ("Read", False), ("Bash", True))):
        used = {"sessionId": "t", "toolName": tool, "success": good, "executionTime": 10}
        await local.data("POST", "hooks/tool-usage", used)
        tools = await local.data("GET", "analytics/tools")
        assert sum(one["count"] for one in tools["top_tools"]) == n + 1
    assert tools["top_tools"] == [
        {"name": "Read", "count": 3, "averageTime": 10},
        {"name": "Bash", "count": 1, "averageTime": 10},
    ]
    assert tools["error_rates"] == {"Read": 0.3333, "Bash": 0}
    assert (await local.data("GET", "analytics/productivity"))["tool_usage_patterns"] == {"Read": 75, "Bash": 25}
    board = await local.data("GET", "dashboard/metrics")
    assert board["today_stats"]["tools_used"] == ["Bash", "Read"]
    assert board["current_session"]["session_id"] == "t"
    indicators = await local.data("GET", "dashboard/indicators")
    assert (indicators["session_id"], indicators["current_metrics"]["commands_executed"]) == ("t", 4)


async def test_a_page_is_cut_out_of_the_order_in_which_sessions_came(local: Local) -> None:
    """Limits and offsets over thirty sessions of two people, by user and by time."""
    for n in range(30):
        await local.data(
            "POST", "sessions", {"session_id": f"p-{n}", "start_time": f"2026-01-{n + 1:02}", "user": "ab"[n % 2]}
        )
    for query, wanted in (
        ("limit=5", range(5)),
        ("limit=5&offset=28", range(28, 30)),
        ("user=a&limit=3&offset=2", range(4, 10, 2)),
        ("start_date=2026-01-10&end_date=2026-01-12", range(9, 12)),
        ("user=b&start_date=2026-01-10&end_date=2026-01-12", range(9, 12, 2)),
        ("user=c", ()),
        ("limit=-1", ()),
        ("limit=0", ()),
        ("limit=07x", range(7)),
        ("offset=x", ()),
    ):
        found = [one["session_id"] for one in await local.data("GET", f"sessions?{query}")]
        assert found == [f"p-{n}" for n in wanted], query


async def test_times_are_read_as_recorded(tmp_path: Path) -> None:
    """Forms of times that its clients send, the moments they name, and what is no time."""
    async with local_api(tmp_path / "home", FakeClock()) as local:
        for text, wanted in (
            ("2025-02-30", "2025-03-02T00:00:00.000Z"),
            ("2025-04-31T10:00:00Z", "2025-05-01T10:00:00.000Z"),
            ("2025-03", "2025-03-01T00:00:00.000Z"),
            ("2025-03-10T08:31:00.5+02:30", "2025-03-10T06:01:00.500Z"),
            ("2025-03-10T08:31:00.123999Z", "2025-03-10T08:31:00.123Z"),
            ("2025-03-10 08:31", "2025-03-10T08:31:00.000Z"),
            ("2025-03-10T24:00:00Z", "2025-03-11T00:00:00.000Z"),
        ):
            body = SESSION | {"start_time": text}
            assert (await local.data("POST", "sessions", body))["start_time"] == wanted, text
        for text, wrong in (
            ("2025-W03", "Invalid time value"),
            ("20250310", "Invalid time value"),
            ("1969-12-31", "Invalid time value"),
            ("2025-13-01", 'Validation error: "start_time" must be in iso format'),
            ("2025-03-10T25:00:00Z", 'Validation error: "start_time" must be in iso format'),
            ("10 March 2025", 'Validation error: "start_time" must be in iso format'),
        ):
            answer = await local.ask("POST", "sessions", SESSION | {"start_time": text})
            assert (answer.status, answer.document["error"]) == (400, wrong), text


async def test_the_last_days_are_read_before_anybody_asks(tmp_path: Path) -> None:
    """The first answer after a start costs no more than one after a write."""
    settings = {"METRICSD_LEGACY_LISTEN": "127.0.0.1:3002", "METRICSD_STORE_CHECK_S": "0.02"}
    async with local_api(tmp_path / "home", settings=settings) as local:
        await local.data("POST", "hooks/tool-usage", {"sessionId": "t", "toolName": "Read"})
        loop = asyncio.create_task(local.shelf.loop())
        async with asyncio.timeout(20):
            while not local.shelf._remembered._pages:
                await asyncio.sleep(0)
        loop.cancel()


async def test_reading_ahead_costs_nobody_anything_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for speed alone: the daemon's task goes on."""
    settings = {"METRICSD_LEGACY_LISTEN": "127.0.0.1:3002", "METRICSD_STORE_CHECK_S": "0.02"}
    async with local_api(tmp_path / "home", settings=settings) as local:
        tried = asyncio.Event()

        async def fail(*_: object, **__: object) -> None:
            tried.set()
            raise RuntimeError("a fault")

        monkeypatch.setattr(local.shelf, "figures", fail)
        with structlog.testing.capture_logs() as logs:
            loop = asyncio.create_task(local.shelf.loop())
            await asyncio.wait_for(tried.wait(), 20)
            done, _ = await asyncio.wait({loop}, timeout=0.1)
        assert not done
        assert [entry["log_level"] for entry in logs if entry["event"] == "legacy.not_warmed"] == ["error"]
        loop.cancel()


@pytest.mark.parametrize("listen", ["", "127.0.0.1:3002"])
async def test_only_a_home_that_serves_the_api_pays_for_the_index_of_its_calls(tmp_path: Path, listen: str) -> None:
    """It is a tenth of a store's bytes."""
    index = "SELECT count(*) FROM sqlite_schema WHERE name = 'event_session'"
    settings = {"METRICSD_LEGACY_LISTEN": listen, "METRICSD_STORE_CHECK_S": "0.02"} if listen else {}
    async with local_api(tmp_path / "home", settings=settings) as local:
        loop = asyncio.create_task(local.shelf.loop())
        async with asyncio.timeout(20):
            while listen and not await local.count(index):
                await asyncio.sleep(0)
        await local.data("POST", "sessions", SESSION)
        assert await local.count(index) == bool(listen)
        loop.cancel()
