"""`metricsd report` and `today` over a long history, beside a bare Python start and a full scan of the events.

    python -m bench.report [--events N] [--days N] [--sessions N] [--rounds N] [--json]

The store is made once in a throw-away home, by the product's own inserts. Commands run interleaved, so that a busy
machine slows all of them; the figures are medians of whole processes. Limits over the bare start: 300 ms for every
day, 100 ms for the last 14 days, 60 ms for today. The scan is the same report counted from events, in one process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from metricsd.analytics import periods
from metricsd.ids import line_id
from metricsd.model import Event, Kind
from metricsd.store import events, session_totals
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.store.summary import reading
from tests.homes import REPOSITORY, Home

EVENTS, DAYS, SESSIONS = 1_000_000, 365, 30_000
BATCH = 5000
DAY_S = 86_400
LIMITS_MS = {"daily": 300.0, "daily_14d": 100.0, "today": 60.0}
TITLES = {
    "today": "today",
    "daily_14d": "daily --since 14d",
    "daily": "daily",
    "tools": "tools",
    "sessions": "sessions --json",
}
TOOLS = ("Bash", "Read", "Edit", "Grep", "Write", "Glob", "Task", "TodoWrite", "mcp__github__search")
WEIGHTS = (30, 28, 16, 8, 6, 5, 3, 2, 2)
PROJECTS = ("metricsd", "webshop-api", "mobile-app", "infra", "docs", "site")


def history(count: int, days: int, sessions: int) -> Iterator[Identified]:
    """Yield events of sessions spread over the days up to now, the same ones for the same arguments."""
    chance = random.Random(7)
    each = max(count // sessions, 1)
    start_s = int(time.time()) // DAY_S * DAY_S - (days - 1) * DAY_S
    for session in range(sessions):
        at = (start_s + session * (days * DAY_S) // sessions) * 1_000_000
        project = chance.choice(PROJECTS)
        for number in range(each):
            at += chance.randrange(1, 20) * 1_000_000
            event = _event(chance, number, at, f"s-{session:06d}", project)
            yield Identified(line_id(b"%d/%d" % (session, number), at // 1000, 0), event)


def _event(chance: random.Random, number: int, at: int, session: str, project: str) -> Event:
    common: dict[str, Any] = {"at": at, "app": "claude-code", "session": session, "project": project}
    if number == 0:
        return Event(**common, kind=Kind.SESSION_STARTED, name="SessionStart")
    if number % 9 == 0:
        return Event(**common, kind=Kind.PROMPT_SUBMITTED, name="UserPromptSubmit")
    (tool,) = chance.choices(TOOLS, WEIGHTS)
    return Event(
        **common,
        kind=Kind.TOOL_USED,
        name="PostToolUse",
        tool=tool,
        outcome="failed" if chance.random() < 0.05 else "ok",
        duration_ms=int(chance.lognormvariate(5, 1.5)),
        lines_added=chance.randrange(9) if tool == "Edit" else None,
    )


def fill(path: Path, count: int, days: int, sessions: int) -> None:
    """Make the store."""
    store = Store.open(path)
    batch: list[Identified] = []
    for item in history(count, days, sessions):
        batch.append(item)
        if len(batch) == BATCH:
            _insert(store, batch)
            batch.clear()
    _insert(store, batch)
    store.checkpoint()
    store.close()


def _insert(store: Store, batch: list[Identified]) -> None:
    with store.transaction():
        events.insert(store, batch, device=events.own_device(store))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return medians in milliseconds."""
    commands = {
        "bare": ["-c", "pass"],
        "today": ["-m", "metricsd", "today"],
        "daily_14d": ["-m", "metricsd", "report", "daily", "--since", "14d"],
        "daily": ["-m", "metricsd", "report", "daily"],
        "tools": ["-m", "metricsd", "report", "tools"],
        "sessions": ["-m", "metricsd", "report", "sessions", "--json"],
    }
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        fill(home.paths.store, options.events, options.days, options.sessions)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, arguments in commands.items():
                times[name].append(_run(home, arguments))
        found = {f"{name}_ms": round(statistics.median(values), 1) for name, values in times.items()}
        return found | _compared(home)


def _compared(home: Home) -> dict[str, float]:
    """Return what the same days cost over totals and over a scan; raise if they differ."""
    with reading(home.paths.store) as summary:
        starts = session_totals.starts(summary)
        by = ("day", "kind", "bucket")
        kept, kept_ms = _timed(lambda: periods.daily(summary.cells(*by), starts))
        counted, scan_ms = _timed(lambda: periods.daily(summary.scanned(*by), starts))
        if kept != counted:
            raise AssertionError("the totals differ from the events")
    return {"totals_ms": kept_ms, "scan_ms": scan_ms}


def _timed(report: Callable[[], list[periods.Period]]) -> tuple[list[periods.Period], float]:
    began = time.perf_counter()
    found = report()
    return found, round((time.perf_counter() - began) * 1000, 1)


def _run(home: Home, arguments: list[str]) -> float:
    # No timeout: with one, subprocess polls in growing steps, and every figure would be rounded up to the next.
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=home.env, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description="Cost of reports over a long history")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    over = {name: round(found[f"{name}_ms"] - found["bare_ms"], 1) for name in LIMITS_MS}
    good = all(over[name] <= limit for name, limit in LIMITS_MS.items())
    if options.json:
        print(json.dumps({**found, "over_bare_ms": over, "ok": good}))
        return 0 if good else 1
    print(
        f"report over {options.events:,} events, {options.days} days, {options.sessions:,} sessions; whole processes, medians"
    )
    print(f"  python -c pass          {found['bare_ms']:>8} ms (the floor)")
    for name, title in (
        ("today", "today"),
        ("daily_14d", "daily --since 14d"),
        ("daily", "daily"),
        ("tools", "tools"),
        ("sessions", "sessions --json"),
    ):
        limit = f"  {over[name]:>6} ms over the floor (at most {LIMITS_MS[name]:g})" if name in LIMITS_MS else ""
        print(f"  {title:22}  {found[f'{name}_ms']:>8} ms{limit}")
    print(f"  days from totals        {found['totals_ms']:>8} ms in one process")
    print(f"  the same by a full scan {found['scan_ms']:>8} ms, and equal")
    print("  ok" if good else "  FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
