"""Whatever is asked of the older API, there is an answer below 500, in its form, and no file outside of the home."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metricsd.cloud.access import Scope
from metricsd.legacy.api import ROUTES, ROUTES_OF_ONE
from metricsd.legacy.asked import Answer, Request
from metricsd.legacy.checks import SESSION, TOOL_METRIC
from tests.cloud.support import CloudUnderTest, bearer
from tests.legacy.local import Local, local_api

IDS = (
    "../x", "..%2Fx", "../../../../etc/passwd", "/etc/passwd", "x" * 10_240, "a\0b", "🦊", "日本/語", ".", "..", "~", "%",
    "' OR 1=1 --", "h:abc", "custom:x", "legacy/x", "C:\\x", " ", "\u202e", "null", "undefined", "a b", "é\u0301",
)  # fmt: skip
TYPES = ("application/json", "application/x-www-form-urlencoded", "text/plain", "", "application/json; charset=latin-1")
NAMES = sorted(
    {rule.name for rule in (*SESSION, *TOOL_METRIC)}
    | {
        "sessionId",
        "toolName",
        "executionTime",
        "memoryUsage",
        "gitBranch",
        "workingDirectory",
        "commandLine",
        "metrics",
    }
    | {"productivity_score", "enhanced_activity", "execution_time_ms", "auth_token", "user_id", "__proto__"}
)
TIMES = ("2025-03-10T06:00:00Z", "2025-02-30", "9999-12-31", "1969-01-01", "0000-01-01", "2025-W03", "now", "")

ids = st.one_of(st.sampled_from(IDS), st.text(max_size=40))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False),
    ids, st.sampled_from(TIMES),
)  # fmt: skip
values = st.recursive(
    scalars, lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(ids, part, max_size=3)), max_leaves=6
)
objects = st.dictionaries(st.sampled_from(NAMES), values, max_size=8)
whole_sessions = st.fixed_dictionaries(
    {"session_id": ids, "start_time": st.sampled_from(TIMES), "user": ids},
    optional={"end_time": st.sampled_from(TIMES)},
)
whole_calls = st.fixed_dictionaries(
    {"event": ids, "timestamp": st.sampled_from(TIMES), "session_id": ids}, optional={"parameters": values}
)
bodies = st.one_of(objects, whole_sessions, whole_calls, st.lists(objects | whole_calls | scalars, max_size=4), values)
raws = st.one_of(
    st.binary(max_size=80), st.sampled_from([b"{", b"[" * 5000, b"null", b'"x"', b"1e999", b"9" * 5000, b"\xff"])
)
queries = st.dictionaries(
    st.sampled_from(["user", "limit", "offset", "start_date", "end_date", "days", "user[]", "x"]),
    st.one_of(ids, st.integers().map(str), st.sampled_from(TIMES)),
    max_size=4,
)
requests = st.tuples(
    st.sampled_from([*[route for route, _ in ROUTES.items()], *[(m, f"{p}/{{}}") for m, p in ROUTES_OF_ONE]]),
    ids, bodies, st.none() | raws, st.sampled_from(TYPES), queries,
)  # fmt: skip


def request_of(drawn: Any) -> Request:
    (method, path), session, body, raw, kind, query = drawn
    escaped = quote(session.encode("utf-8", "replace"), safe="")
    data = raw if raw is not None else json.dumps(body).encode()
    text = "&".join(f"{name}={quote(str(value).encode('utf-8', 'replace'))}" for name, value in query.items())
    return Request(method, f"/api/v1/{path.format(escaped)}", text, kind, data if method != "GET" else b"")


def assert_sound(answer: Answer) -> None:
    """An answer in the API's form, or the hooks', with a status that it may have."""
    assert answer.status in (200, 201, 400, 404, 413, 415), answer
    document: Mapping[str, Any] = json.loads(answer.encoded())
    assert "timestamp" in document
    if answer.status < 300:
        assert document["success"] is True and "data" in document
    else:
        assert isinstance(document["error"], str) and document["error"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder full of what a traversal would find."""
    for name in ("x", "x.json", "etc/passwd", "canary"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("canary")
    return tmp_path


def listing(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*"))
        if path.is_file() and "home" not in path.relative_to(root).parts
    }  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(requests, min_size=5, max_size=25))
def test_every_endpoint_answers_whatever_it_is_sent(outside: Path, drawn: list[Any]) -> None:
    """No 5xx, no fault, nothing but an answer; files beside the home are as they were."""

    async def ask_all() -> None:
        async with local_api(outside / "home") as local:
            for one in drawn:
                assert_sound(await local.api.answer(request_of(one)))

    before = listing(outside)
    asyncio.run(ask_all())
    assert listing(outside) == before


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(requests, min_size=5, max_size=25))
def test_the_cloud_answers_whatever_it_is_sent(tmp_path_factory: pytest.TempPathFactory, drawn: list[Any]) -> None:
    """The same through the cloud: the API's answers, or a problem document of a limit, and no fault."""

    async def ask_all() -> None:
        async with CloudUnderTest(tmp_path_factory.mktemp("cloud") / "data") as cloud:
            await cloud.tenant()
            headers = bearer(await cloud.token(Scope.LEGACY))
            for one in drawn:
                asked = request_of(one)
                url = httpx.URL("http://cloud", raw_path=f"{asked.path}?{asked.query}".encode())
                kind = {"content-type": asked.content_type} if asked.content_type else {}
                reply = await cloud.http.request(asked.method, url, content=asked.body, headers=headers | kind)
                if reply.headers["content-type"] == "application/problem+json":
                    assert reply.status_code in (400, 413), reply.text
                else:
                    assert_sound(Answer(reply.status_code, reply.json()))

    asyncio.run(ask_all())


@pytest.mark.parametrize("session", IDS, ids=range(len(IDS)))
async def test_an_id_is_data(tmp_path: Path, session: str) -> None:
    """A session of any id is created, read, updated, used and deleted under exactly that id, and leaves no file."""
    async with local_api(tmp_path / "home") as local:
        path = f"sessions/{quote(session.encode(), safe='')}"
        body = {"session_id": session, "start_time": "2025-03-10T06:00:00Z", "user": "dora"}
        before = files(local)
        assert (await local.data("POST", "sessions", body))["session_id"] == session
        call = {"event": "x", "timestamp": "2025-03-10T06:01:00Z", "session_id": session, "tool_name": "Read"}
        assert (await local.data("POST", "tool-metrics", call))["session_id"] == session
        assert (await local.data("GET", path))["session_id"] == session
        assert [one["session_id"] for one in await local.data("GET", "sessions?user=dora")] == [session]
        assert (await local.data("PUT", path, body | {"git_branch": "b"}))["git_branch"] == "b"
        assert (await local.data("GET", f"analytics/{path}"))["session_id"] == session
        (shown,) = await local.data("GET", f"tool-{path.replace('sessions', 'metrics')}")
        assert shown["session_id"] == session
        assert (await local.data("POST", "hooks/session-end", {"sessionId": session}))["metrics"][
            "sessionId"
        ] == session
        assert (await local.data("DELETE", path))["deleted"] is True
        assert (await local.ask("GET", path)).status == 404
        assert files(local) == before


def files(local: Local) -> set[str]:
    """Return the files of the home; its database comes and goes with a WAL."""
    root = local.paths.state_dir.parent.parent
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "store.db" not in path.name}
