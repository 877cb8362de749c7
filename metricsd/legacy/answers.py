"""The older API's answers about analytics and the dashboard, made of the cloud's own names; and its envelope.

Missing parts have the older API's defaults. Nothing is computed here: the figures come from `metricsd.analytics`.
"""

from __future__ import annotations

from metricsd.analytics.numbers import number_of, plain
from metricsd.legacy.sessions import user_of
from metricsd.legacy.values import Json, iso, list_of, object_of, parse_ms, record_of

VERSION = "1.0.0"
"""Version of that API, which its clients compare; not metricsd's."""
STABLE = "stable"


def analytics(value: object) -> Json:
    """Return the answer of `analytics/productivity`."""
    cloud = record_of(value, "analytics")
    trends = [record_of(one, "trends") for one in list_of(cloud, "trends")]
    return {
        "productivity_score": _number(cloud, "averageProductivityScore"),
        "velocity": _number(cloud, "averageVelocity"),
        "focus_time": _number(cloud, "totalFocusTime"),
        "session_efficiency": _number(cloud, "sessionEfficiency"),
        "tool_usage_patterns": object_of(cloud, "toolUsagePatterns") or {},
        "productivity_trends": [
            {
                "date": one.get("date"),
                "score": _number(one, "productivityScore"),
                "sessions": _number(one, "sessionCount"),
                "tools_used": list_of(one, "toolsUsed"),
            }
            for one in trends
        ],
    }


def dashboard(value: object) -> Json:
    """Return the answer of `dashboard/metrics`."""
    cloud = record_of(value, "dashboard")
    current = object_of(cloud, "currentSession")
    today = object_of(cloud, "todayStats") or {}
    return {
        "current_session": None if current is None else _current(current),
        "today_stats": {
            "sessions": _number(today, "sessions"),
            "productivity_score": _number(today, "productivityScore"),
            "tools_used": list_of(today, "toolsUsed"),
            "focus_time_minutes": _number(today, "focusTimeMinutes"),
        },
        "weekly_trends": list_of(cloud, "weeklyTrends"),
        "top_tools": list_of(cloud, "topTools"),
        "productivity_trend": cloud.get("productivityTrend") or STABLE,
    }


def envelope(value: object, *, now_ms: int) -> Json:
    """Return the envelope of an answer: `{data, success, error, message}` in; `message` becomes a key of the data."""
    found = record_of(value, "response")
    ending = {"timestamp": iso(now_ms), "version": VERSION}
    if found.get("success", True) is False:
        return {"success": False, "error": found.get("error"), **ending}
    data = found.get("data")
    message = found.get("message")
    if message is not None and isinstance(data, dict):
        data = {**data, "message": message}
    return {"success": True, "data": data, **ending}


def _current(session: Json) -> Json:
    found: Json = {
        "session_id": session.get("id"),
        "start_time": iso(parse_ms("sessionStart", session.get("sessionStart"))),
        "user": user_of(session),
    }
    if session.get("productivityScore") is not None:
        found["productivity_score"] = _number(session, "productivityScore")
    return found


def _number(record: Json, name: str) -> int | float:
    return plain(number_of(record.get(name)))
