"""A folder as years of the older hooks leave it, of any size, with the truth about it.

Calls in sessions over some months, each session with its first record, its two lines, its summary and its line in the
history; agents announced before their calls; of a hundred calls some followed by a line that nobody can read. The same
arguments give the same bytes, in memory that does not grow.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, TextIO

FIRST = datetime(2026, 2, 2, 7, 30, tzinfo=UTC)
DAYS = 120
TOOLS = ("Bash", "Read", "Edit", "Write", "Grep", "Glob", "Task", "WebFetch", "mcp__tracker__find")
WEIGHTS = (28, 27, 17, 7, 9, 5, 3, 2, 2)
PROJECTS = ("shop", "ledger", "site", "tools", "übersicht", "карта")
COMMANDS = ("git log -3", "pytest -x", "make", "npm ci", "cargo build")
BAD = ('{"event_type":"tool_execution","tool_name"', "-- log rotated --", '{"event_type":"tool_execution"}', "\0\0\0\0")
SESSION_CALLS = (4, 110)
_dump = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclass
class OfTool:
    """What a tool's calls add up to."""

    count: int = 0
    failures: int = 0
    total_ms: int = 0


@dataclass
class Truth:
    """What a right reader finds."""

    events: int = 0
    sessions: int = 0
    bad_lines: int = 0
    announced: int = 0
    by_tool: dict[str, OfTool] = field(default_factory=dict)

    def count(self, tool: str, ms: int, *, ok: bool) -> None:
        """Count one call."""
        self.events += 1
        found = self.by_tool.setdefault(tool, OfTool())
        found.count += 1
        found.failures += not ok
        found.total_ms += ms


@dataclass
class _Session:
    id: str
    project: str
    start: datetime
    end: datetime
    calls: int = 0
    good: int = 0


def make_source(folder: Path, calls: int, *, bad_percent: float = 0.0, seed: int = 1) -> Truth:
    """Write a folder of so many calls; return the truth about it."""
    random, truth = Random(seed), Truth()
    (folder / "sessions").mkdir(parents=True)
    with (folder / "tool-metrics.jsonl").open("w") as lines, (folder / "session-history.jsonl").open("w") as history:
        for session, starts in _sessions(random, calls):
            for at in starts:
                _call(random, session, at, lines, truth)
                if random.random() * 100 < bad_percent:
                    lines.write(random.choice(BAD) + "\n")
                    truth.bad_lines += 1
            _close(folder / "sessions", session, history)
            truth.sessions += 1
    return truth


def _sessions(random: Random, calls: int) -> Iterator[tuple[_Session, Iterator[datetime]]]:
    step = timedelta(days=DAYS) / max(calls, 1)
    now, left = FIRST, calls
    while left:
        size = min(random.randint(*SESSION_CALLS), left)
        left -= size
        gaps = [step * random.uniform(0.2, 1.8) for _ in range(size)]
        session = _Session(str(uuid.UUID(int=random.getrandbits(128), version=4)), random.choice(PROJECTS), now, now)

        def times(start: datetime = now, gaps: list[timedelta] = gaps) -> Iterator[datetime]:
            for gap in gaps:
                start += gap
                yield start

        yield session, times()
        now += sum(gaps, timedelta())


def _call(random: Random, session: _Session, at: datetime, lines: TextIO, truth: Truth) -> None:
    tool = random.choices(TOOLS, WEIGHTS)[0]
    ok, ms = random.random() > 0.06, int(random.lognormvariate(5, 1.4))
    line: dict[str, Any] = {
        "event_type": "tool_execution", "timestamp": _time(at), "tool_name": tool, "success": ok,
        "execution_time_ms": ms, "user": "ann", "session_id": session.id,
    }  # fmt: skip
    path = f"/home/ann/{session.project}/part{random.randrange(60)}.py"
    match tool:
        case "Bash":
            command = random.choice(COMMANDS)
            line |= {"command": command, "command_type": command.split()[0], "background": False, "timeout": None}
        case "Read":
            line |= {"file_path": path, "file_size_bytes": random.randrange(60_000), "lines_requested": "all"}
        case "Edit":
            added, removed = random.randint(1, 12), random.randint(1, 9)
            line |= {"file_path": path, "lines_added": added, "lines_removed": removed, "net_lines": added - removed}
        case "Write":
            line |= {
                "file_path": path,
                "content_length": random.randrange(4000),
                "lines_written": random.randint(1, 80),
            }
        case "Task":
            agent = random.choice(("explore", "code-reviewer"))
            told = {"event_type": "agent_invocation", "timestamp": line["timestamp"], "agent_name": agent}
            lines.write(_dump(told | {"task_description": "look", "success": ok, "execution_time_ms": ms}) + "\n")
            line |= {"subagent_type": agent, "task_description": "look", "delegation": True}
            truth.announced += 1
        case _:
            line |= {"generic_tool": True, "input_keys": ["pattern"]}
    if not ok:
        line |= {"error": True, "error_message": "Error: it failed"}
    lines.write(_dump(line) + "\n")
    truth.count(tool, ms, ok=ok)
    session.end, session.calls, session.good = at, session.calls + 1, session.good + ok


def _close(folder: Path, session: _Session, history: TextIO) -> None:
    start, end = _time(session.start), _time(session.end)
    who = {"user": "ann", "working_directory": f"/home/ann/{session.project}", "git_branch": "main"}
    hours = round((session.end - session.start).total_seconds() / 3600, 2)
    score = round(min(10.0, 1 + session.calls / 12), 1)
    metrics = {"commands_executed": session.calls, "success_rate": round(100 * session.good / session.calls, 1)}
    first: dict[str, Any] = {"session_id": session.id, "start_time": start, **who}
    counters = {"commands_executed": 0, "agents_used": [], "focus_blocks": 0, "interruptions": 0}
    first |= {
        "productivity_metrics": counters,
        "quality_metrics": {"tests_run": 0},
        "workflow_metrics": {"git_commits": 0},
    }
    summary: dict[str, Any] = {
        "session_id": session.id, "start_time": start, "end_time": end, "duration_hours": hours,
        "productivity_score": score, "trend": "good", "metrics": metrics, "performance": {}, "recommendations": [],
    }  # fmt: skip
    (folder / f"{session.id}.json").write_text(json.dumps(first, indent=2, ensure_ascii=False))
    (folder / f"{session.id}_summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False))
    ended: dict[str, Any] = {"duration_hours": hours, "productivity_score": score, "final_metrics": metrics}
    lines: tuple[dict[str, Any], ...] = (
        {"event": "session_start", "timestamp": start, "session_id": session.id, **who},
        {"event": "session_end", "timestamp": end, "session_id": session.id, **ended},
    )
    (folder / f"{session.id}.jsonl").write_text("".join(_dump(line) + "\n" for line in lines))
    history.write(_dump(summary) + "\n")


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
