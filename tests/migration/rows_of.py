"""Calls and sessions of the older hooks, one field away from good ones, and the rows that the first stages make."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metricsd.migration.model import Planned
from tests.migration.sources import read, surveyed

NOW_US = 1_796_000_000_000_000
"""2026-11-30: the time of the runs in these tests."""
SESSION = "c742de6a-56a3-4558-a564-0277dee8108e"


def call(at: str = "2026-11-22T18:59:05Z", **more: Any) -> dict[str, Any]:
    """Return a call as the first generation writes it; None takes a field away."""
    line = {
        "event_type": "tool_execution",
        "timestamp": at,
        "tool_name": "Edit",
        "success": True,
        "execution_time_ms": 14,
        "user": "dev1",
        "session_id": SESSION,
        "file_path": "/home/dev1/proj/sample.py",
        "lines_added": 3,
        "lines_removed": 1,
        "net_lines": 2,
        "replace_all": False,
    }
    return {name: value for name, value in (line | more).items() if value is not ...}


def first(session: str = SESSION, start: str = "2026-11-22T18:59:05Z", **more: Any) -> dict[str, Any]:
    """Return the first record of a session."""
    record = {
        "session_id": session,
        "start_time": start,
        "user": "dev1",
        "working_directory": "/home/dev1/proj",
        "git_branch": "main",
        "productivity_metrics": {"commands_executed": 0, "focus_blocks": 0, "interruptions": 0},
        "quality_metrics": {"tests_run": 0, "tests_passed": 0, "builds_attempted": 0, "builds_successful": 0},
        "workflow_metrics": {"git_commits": 0},
    }
    return {name: value for name, value in (record | more).items() if value is not ...}


def summary(session: str = SESSION, end: str = "2026-11-22T19:59:05Z", **more: Any) -> dict[str, Any]:
    """Return the summary of a session of one hour."""
    found = {
        "session_id": session,
        "start_time": "2026-11-22T18:59:05Z",
        "end_time": end,
        "duration_hours": 1,
        "productivity_score": 8,
        "metrics": {"commands_executed": 3, "files_modified": 1, "lines_changed": 2, "success_rate": 100},
        "performance": {"commands_per_hour": 3, "lines_per_hour": 2},
    }
    return found | more


def write(
    folder: Path,
    calls: Iterable[object] = (),
    documents: Iterable[dict[str, Any]] = (),
    name: str = "tool-metrics.jsonl",
) -> Path:
    """Write a folder of the older hooks: lines as objects or as bytes, and documents of sessions."""
    (folder / "sessions").mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        for line in calls:
            file.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
    for document in documents:
        kind = "_summary" if "end_time" in document else ""
        place = folder / "sessions" / f"{str(document['session_id'])[:40]}{kind}.json"
        place.write_text(json.dumps(document, indent=2))
    return folder


def planned(source: Path, folder: Path) -> list[Planned]:
    """Return all rows of a small source."""
    work = surveyed(folder, source)
    try:
        return read(work)[0]
    finally:
        work.close()
