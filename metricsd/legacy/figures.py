"""The older API's answers about analytics and the dashboard, made of true figures; pure.

Keys and types are those of its recordings. Scores of days and users are of 100, a session's indicators of 10, a
baseline's success rate is a fraction, as that API has them; the hooks' files have a percent there.
"""

from __future__ import annotations

from datetime import date, timedelta

from metricsd.analytics.baseline import Baseline
from metricsd.analytics.indicators import Indicators
from metricsd.analytics.numbers import plain, rounded
from metricsd.analytics.overview import Dashboard, Productivity, ToolFigures
from metricsd.analytics.tools import TOP, efficiencies, error_rates
from metricsd.legacy.sessions import PRODUCTIVITY
from metricsd.legacy.values import Json, iso

_PERCENT = 100
_EPOCH = date(1970, 1, 1)


def productivity(found: Productivity) -> Json:
    """Return the data of `GET analytics/productivity`; trends are newest first."""
    return {
        "productivity_score": plain(found.score),
        "velocity": plain(found.velocity),
        "focus_time": plain(found.focus_minutes),
        "session_efficiency": plain(found.efficiency),
        "tool_usage_patterns": {name: plain(share) for name, share in found.shares.items()},
        "productivity_trends": [
            {
                "date": str(_date(one.day)),
                "score": plain(one.score),
                "sessions": one.sessions,
                "tools_used": list(one.tools_used),
            }
            for one in found.trends
        ],
    }


def tools(found: ToolFigures) -> Json:
    """Return the data of `GET analytics/tools`."""
    return {
        "top_tools": [
            {"name": use.name or "unknown", "count": use.calls, "averageTime": plain(rounded(use.mean_ms or 0.0))}
            for use in found.uses[:TOP]
        ],
        "tool_efficiency": {name: plain(rounded(share, 4)) for name, share in efficiencies(found.uses).items()},
        "usage_patterns": {"hourly": list(found.by_hour), "daily": list(found.by_weekday)},
        "error_rates": {name: plain(rounded(share, 4)) for name, share in error_rates(found.uses).items()},
    }


def dashboard(found: Dashboard, *, user: str) -> Json:
    """Return the data of `GET dashboard/metrics`; `user` is the name shown for the open session."""
    current = found.current
    return {
        "current_session": None
        if current is None
        else {
            "session_id": current.id,
            "start_time": iso(current.started_at // 1000),
            "user": current.user or user,
            "productivity_score": plain(found.current_score),
        },
        "today_stats": {
            "sessions": found.sessions_today,
            "productivity_score": plain(found.score_today),
            "tools_used": list(found.tools_today),
            "focus_time_minutes": plain(found.focus_minutes_today),
        },
        "weekly_trends": [
            {"day": _date(one.day).strftime("%a"), "productivity": plain(one.score), "sessions": one.sessions}
            for one in found.week
        ],
        "top_tools": [{"name": name, "usage": plain(share)} for name, share in list(found.shares.items())[:TOP]],
        "productivity_trend": found.change.direction,
    }


def indicators(found: Indicators, *, now_ms: int) -> Json:
    """Return the data of `GET dashboard/indicators`; without a session its times are now."""
    metrics: Json = dict.fromkeys(PRODUCTIVITY, 0)
    return {
        "session_id": found.session_id,
        "start_time": iso(now_ms if found.started_at is None else found.started_at // 1000),
        "baseline": baseline(found.baseline),
        "current_metrics": metrics
        | {
            "commands_executed": found.commands_executed,
            "tools_invoked": found.commands_executed,
            "lines_changed": found.lines_changed,
            "agents_used": [],
            "focus_blocks": found.focus_blocks,
            "interruptions": found.interruptions,
        },
        "last_update": iso(now_ms if found.updated_at is None else found.updated_at // 1000),
        "productivity_score": plain(found.productivity_score),
        "trend": found.trend,
    }


def baseline(found: Baseline) -> Json:
    """Return the data of `GET dashboard/baseline`."""
    return {
        "average_commands_per_hour": plain(rounded(found.commands_per_hour, 2)),
        "average_lines_per_hour": plain(rounded(found.lines_per_hour, 2)),
        "average_success_rate": plain(rounded(found.success_rate / _PERCENT, 4)),
        "average_focus_time_minutes": plain(rounded(found.focus_minutes, 1)),
        "average_context_switches": plain(found.context_switches),
    }


def _date(day: int) -> date:
    return _EPOCH + timedelta(days=day)
