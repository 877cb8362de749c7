"""The recorded scenario of a team, converted, stored and reported: its true aggregates, where the original had constants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metricsd.analytics.efficiency import efficiency_of
from metricsd.analytics.focus import focus_minutes
from metricsd.analytics.team import by_user
from metricsd.analytics.tools import Use, by_tool
from metricsd.analytics.velocity import hours_of
from metricsd.legacy import sessions, tool_metrics
from metricsd.legacy.values import parse_ms
from metricsd.store import session_totals
from metricsd.store.connection import Store
from metricsd.store.summary import reading
from metricsd.totals import SessionTotal
from tests.analytics.support import item, note_session, put, put_metric
from tests.legacy.golden import FOLDER, recordings

TRUTH = json.loads((FOLDER / "scenario_truth.json").read_text())
APP = "older"


def scenario() -> tuple[list[Any], list[Any]]:
    """Return the sessions and the calls that clients sent, before the scenario changes any of them."""
    sent = [
        one for one in recordings("legacy_api.jsonl") if one["scenario"].startswith("team scenario") and one["body"]
    ]
    made = [one["body"] for one in sent if one["path"] == "/api/v1/sessions"]
    calls = [one["body"] for one in sent if one["path"] == "/api/v1/tool-metrics"]
    calls.extend(call for one in sent if one["path"].endswith("/batch") for call in one["body"]["metrics"])
    return made, calls


def fill(store: Store, made: list[Any], calls: list[Any]) -> None:
    """Store sessions as records, every other call as an event and the rest as calls that arrived added up."""
    for body in made:
        cloud = sessions.to_cloud(body)
        end = {"ended_at": parse_ms("", cloud["sessionEnd"]) * 1000} if "sessionEnd" in cloud else {}
        note_session(
            store, cloud["id"], app=APP, started_at=parse_ms("", cloud["sessionStart"]) * 1000,
            focus_time_ms=cloud["focusTimeMs"], interruptions_count=cloud["interruptionsCount"], **end,
        )  # fmt: skip
    for number, body in enumerate(calls):
        cloud = tool_metrics.to_cloud(body)
        at = parse_ms("", cloud["createdAt"]) * 1000
        failed = cloud["errorCount"] > 0
        if number % 2:
            changes = {"app": APP, "session": cloud["sessionId"], "tool": cloud["toolName"]}
            outcome = "failed" if failed else "ok"
            put(store, [item(number, at=at, duration_ms=cloud["totalDurationMs"], outcome=outcome, **changes)])
        else:
            put_metric(
                store, cloud["id"], app=APP, session=cloud["sessionId"], tool=cloud["toolName"], started_at=at,
                execution_count=1, error_count=int(failed), total_duration_ms=cloud["totalDurationMs"],
            )  # fmt: skip


def of_use(use: Use) -> dict[str, Any]:
    return {
        "count": use.calls,
        "failures": use.failures,
        "total_execution_time": use.total_ms,
        "average_execution_time": use.mean_ms,
        "success_rate": pytest.approx(1 - use.error_rate),
        "error_rate": pytest.approx(use.error_rate),
    }


def of_session(one: SessionTotal) -> dict[str, Any]:
    return {
        "count": one.tool_calls,
        "failures": one.tool_failures,
        "total_execution_time": one.tool_ms,
        "average_execution_time": one.tool_ms / one.tool_calls,
        "success_rate": pytest.approx(efficiency_of(one)),
        "error_rate": pytest.approx(1 - efficiency_of(one)),
    }


def stored(path: Path, made: list[Any], calls: list[Any]) -> tuple[list[Use], list[SessionTotal]]:
    store = Store.open(path)
    fill(store, made, calls)
    store.close()
    with reading(path) as summary:
        return by_tool(summary.cells("tool", "kind", "bucket")), session_totals.read(summary)


def test_the_teams_aggregates_are_true(tmp_path: Path) -> None:
    """Calls by tool and by session, all together."""
    uses, found = stored(tmp_path / "store.db", *scenario())
    assert len(found) == TRUTH["sessions"]
    assert sum(use.calls for use in uses) == TRUTH["metrics"]
    assert {use.name: of_use(use) for use in uses} == TRUTH["by_tool"]
    assert {one.id: of_session(one) for one in found if one.tool_calls} == TRUTH["by_session"]


@pytest.mark.parametrize("user", TRUTH["users"])
def test_a_users_aggregates_are_true(tmp_path: Path, user: str) -> None:
    """What one user's own machine would show."""
    made, calls = scenario()
    mine = {body["session_id"] for body in made if body["user"] == user}
    uses, found = stored(
        tmp_path / "store.db",
        [body for body in made if body["session_id"] in mine],
        [call for call in calls if call["session_id"] in mine],
    )
    truth = TRUTH["users"][user]
    assert {use.name: of_use(use) for use in uses} == truth["by_tool"]
    assert {
        "sessions": len(found),
        "closed_sessions": sum(one.ended_at is not None for one in found),
        "total_duration_minutes": sum(hours_of(one) for one in found) * 60,
        "focus_minutes": focus_minutes(found),
        "interruptions": sum(one.interruptions or 0 for one in found),
        "metrics": sum(use.calls for use in uses),
    } == {key: value for key, value in truth.items() if key != "by_tool"}
    assert list(by_user(one._replace(user=user) for one in found)) == [user]
