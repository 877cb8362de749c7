"""The small source that faults are put into: some of the run's own lines and sessions, and a few that have everything.

Own data shows what a fault does to the data that is being brought in; the built-in lines make sure that every kind of
fault finds a victim, whatever the source is like.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from metricsd.migration.content import Content
from metricsd.migration.discover import READ_ERRORS
from metricsd.migration.model import FileKind, SourceFile

OWN_LINES = 12
OWN_SESSIONS = 2
LINE_BYTES_MAX = 64 * 1024
BLOCK_BYTES = 256 * 1024
DOCUMENT_BYTES_MAX = 64 * 1024
_DAY = "2026-03-0{}T{:02d}:{:02d}:{:02d}Z"
_SESSIONS = (
    ("0b5c1f9e-3a52-4c0e-9d35-6f1f6a3f6f01", "dev1", "/home/dev1/src/données-été", "fix/zürich"),
    ("7d1b7a3c-92d4-4f6b-8a76-2f2d7f6c5b02", "олег", "/home/oleg/проект", "main"),
)
_TOOLS: tuple[dict[str, Any], ...] = (
    {"tool_name": "Read", "file_path": "/home/dev1/a.py", "file_size_bytes": 1234, "lines_requested": 40},
    {"tool_name": "Edit", "file_path": "/home/dev1/b.ts", "lines_added": 7, "lines_removed": 2, "net_lines": 5},
    {
        "tool_name": "Write",
        "file_path": "/home/dev1/c.md",
        "content_length": 311,
        "lines_written": 12,
        "file_type": ".md",
    },
    {"tool_name": "Bash", "command": "git status --short", "command_type": "git", "background": False, "timeout": None},
    {"tool_name": "Task", "subagent_type": "code-reviewer", "task_description": "look", "delegation": True},
    {"tool_name": "mcp__github__search", "generic_tool": True, "input_keys": ["query"]},
)


def write(folder: Path, files: Iterable[SourceFile], random: Random) -> Path:
    """Write the sample into `folder` and return it."""
    (folder / "sessions").mkdir(parents=True, mode=0o700)
    lines, documents = _own(files, random)
    for number, (session, user, directory, branch) in enumerate(_SESSIONS, start=1):
        documents += _session(number, session, user, directory, branch)
        lines += [json.dumps(call).encode() for call in _calls(number, session, user)]
    (folder / "tool-metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for number, data in enumerate(documents):
        (folder / "sessions" / f"{number:03d}.json").write_bytes(data)
    return folder


def _own(files: Iterable[SourceFile], random: Random) -> tuple[list[bytes], list[bytes]]:
    """Return lines and documents of the source: of the first file of lines that has calls, and of random documents."""
    lines: list[bytes] = []
    documents: list[SourceFile] = []
    seen = 0
    for file in files:
        if file.kind is FileKind.OLDER_LINES and len(lines) < OWN_LINES and file.size:
            lines += _lines(file, random)[: OWN_LINES - len(lines)]
        elif file.kind is FileKind.OLDER_DOCUMENT and 0 < file.size <= DOCUMENT_BYTES_MAX:
            seen += 1
            if len(documents) < OWN_SESSIONS:
                documents.append(file)
            elif (at := random.randrange(seen)) < OWN_SESSIONS:
                documents[at] = file
    found = [data for file in documents if (data := _content(file, DOCUMENT_BYTES_MAX)) is not None]
    return lines, found


def _lines(file: SourceFile, random: Random) -> list[bytes]:
    """Return lines from somewhere in a file, calls alone."""
    data = _content(file, BLOCK_BYTES, 0 if file.packed else random.randrange(max(1, file.size - BLOCK_BYTES)))
    found = (data or b"").split(b"\n")[1 if file.size > BLOCK_BYTES else 0 : -1]
    calls = [line for line in found if b'"tool_execution"' in line and len(line) <= LINE_BYTES_MAX]
    return random.sample(calls, min(len(calls), OWN_LINES))


def _content(file: SourceFile, size: int, offset: int = 0) -> bytes | None:
    """Return some of a file's content; None for one that cannot be read now: it is a sample, others will do."""
    try:
        if file.packed:
            with Content(file.path, packed=True) as content:
                return next((stretch.data[:size] for stretch in content.stretches()), b"")
        with Path(file.path).open("rb") as stream:
            stream.seek(offset)
            return stream.read(min(size, file.size - offset))
    except READ_ERRORS:
        return None


def _session(number: int, session: str, user: str, directory: str, branch: str) -> list[bytes]:
    start, end = _DAY.format(number, 8, 0, 0), _DAY.format(number, 9, 30, 30)
    first = {
        "session_id": session, "start_time": start, "user": user, "working_directory": directory, "git_branch": branch,
        "productivity_metrics": {"commands_executed": 0, "focus_blocks": 2, "interruptions": 3},
        "quality_metrics": {"tests_run": 5, "tests_passed": 4}, "workflow_metrics": {"git_commits": 1},
    }  # fmt: skip
    last = {
        "session_id": session, "start_time": start, "end_time": end, "duration_hours": 1.51, "productivity_score": 7.3,
        "metrics": {"commands_executed": 6, "lines_changed": 17, "success_rate": 83.3},
    }  # fmt: skip
    return [json.dumps(document, ensure_ascii=False).encode() for document in (first, last)]


def _calls(number: int, session: str, user: str) -> list[dict[str, Any]]:
    return [
        {
            "event_type": "tool_execution", "timestamp": _DAY.format(number, 8, 7 * place, 13), "success": place != 3,
            "execution_time_ms": 37 + 211 * place, "user": user, "session_id": session, **tool,
        }
        for place, tool in enumerate(_TOOLS)
    ]  # fmt: skip
