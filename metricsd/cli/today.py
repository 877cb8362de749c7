"""`today`: what was done since midnight, by the user's clock. Works with no daemon and no store.

This path takes a Python start plus 60 ms at most: it must never import click, msgspec, httpx or structlog, and reads
one day of the totals.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from metricsd.analytics import periods, tools
from metricsd.config import find_paths
from metricsd.errors import EXIT_OK
from metricsd.store import session_totals
from metricsd.store.calendar import date_of
from metricsd.store.summary import Address, Summary, reading

TOOLS_SHOWN_MAX = 5


def run_today(*, as_json: bool) -> int:
    """Print today's figures and return the exit code."""
    with reading(find_paths().store, address=_address) as summary:
        found = gather(summary, now_us=time.time_ns() // 1000)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        sys.stdout.write(render(found) + "\n")
    return EXIT_OK


def gather(summary: Summary, *, now_us: int) -> dict[str, Any]:
    """Return today's figures; fields are only added."""
    today = summary.days.of(now_us)
    days = (today, today)
    cells = summary.cells("day", "kind", "tool", "bucket", days=days)
    total = periods.total(cells, session_totals.starts(summary, days))
    uses = tools.by_tool(cells)
    found = total or periods.Period(today, *(0,) * 7, 0.0, 0, None, None, None, 0, 0)
    return {
        "day": str(date_of(today)),
        "zone": summary.days.name or datetime.now().astimezone().strftime("UTC%z"),
        "events": found.events,
        "sessions": found.sessions,
        "prompts": found.prompts,
        "turns": found.turns,
        "tool_calls": found.tool_calls,
        "tool_failures": found.tool_failures,
        "error_rate": round(found.error_rate, 4),
        "tool_ms": found.tool_ms,
        "p50_ms": None if found.p50_ms is None else round(found.p50_ms, 1),
        "p95_ms": None if found.p95_ms is None else round(found.p95_ms, 1),
        "lines_added": found.lines_added,
        "lines_removed": found.lines_removed,
        "tools": [{"name": use.name, "calls": use.calls, "failures": use.failures} for use in uses],
        "calls_by_hour": tools.calls_by_hour(summary.hours(days)),
    }


def render(found: dict[str, Any]) -> str:
    """Return the screen for people."""
    from metricsd.cli.status_text import counted
    from metricsd.cli.table import clean, duration_text, percent_text

    lines = [f"{found['day']} ({clean(found['zone'])})"]
    if not found["events"] and not found["sessions"] and not found["tool_calls"]:
        return f"{lines[0]}\nnothing recorded yet today"
    lines.append(
        f"sessions  {_count(found['sessions'])} began, {counted(found['prompts'], 'prompt')}, {counted(found['turns'], 'turn')}"
    )
    calls = f"tools     {counted(found['tool_calls'], 'call')}, {percent_text(found['error_rate'])} failed"
    lines.append(f"{calls}, half within {duration_text(found['p50_ms'])}, 95 % within {duration_text(found['p95_ms'])}")
    lines.append(f"lines     {_count(found['lines_added'])} added, {_count(found['lines_removed'])} removed")
    used = [f"{clean(use['name'] or '-')} {_count(use['calls'])}" for use in found["tools"][:TOOLS_SHOWN_MAX]]
    if used:
        lines.append(f"most used {', '.join(used)}")
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number:,}"


def _address() -> Address:
    # Only after a deletion under a hashed id: costs more than all the rest, and is rare.
    from metricsd.cli.names import Names

    make: Callable[[], Address] = Names(find_paths()).need_address
    return make()
