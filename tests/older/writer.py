"""Writes what the older hooks wrote, file by file as they did, while somebody else reads.

One call of a function is one run of one hook: a session's start, a tool's call, a session's end. The first generation
keeps everything in one folder; the second looks for its session where it is not, writes `default-session`, and puts a
token on every line.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.older.support import TOKEN

ZEROS = {"commands_executed": 0, "tools_invoked": 0, "files_modified": 0, "lines_changed": 0, "agents_used": []}
TOOLS = ("Read", "Edit", "Bash", "Task", "Grep")


class OlderHooks:
    """The hooks of one generation in a home folder. `now` moves by itself, one second a call."""

    def __init__(self, home: Path, generation: int, began: datetime = datetime(2026, 1, 5, 8, tzinfo=UTC)) -> None:
        self.generation = generation
        self.now = began
        self.agent = home / ".agent-os" / "metrics"
        self.tools = self.agent if generation == 1 else home / ".ai-mesh" / "metrics"
        self.session = ""
        self.started = began
        self.calls: list[tuple[str, str]] = []
        """(session, tool) of every call that was written."""

    def start(self) -> str:
        """Run session-start."""
        self.session, self.started = str(uuid.uuid4()), self._tick()
        at = self._iso(self.started)
        who = {"user": "dev1", "git_branch": "main", "working_directory": "/home/dev1/shop"}
        (self.agent / "sessions").mkdir(parents=True, exist_ok=True)
        (self.agent / ".current-session-id").write_text(self.session)
        record = {"session_id": self.session, "start_time": at, **who, "productivity_metrics": ZEROS}
        self._document(f"sessions/{self.session}.json", record)
        line = {"event": "session_start", "timestamp": at, "session_id": self.session, **who}
        (self.agent / "sessions" / f"{self.session}.jsonl").write_text(json.dumps(line) + "\n")
        self._document(
            "productivity-indicators.json", {"session_id": self.session, "baseline": {}, "trend": "starting"}
        )
        return self.session

    def call(self, tool: str | None = None) -> None:
        """Run tool-metrics, and agent_invocation before a Task."""
        number = len(self.calls)
        tool = tool or TOOLS[number % len(TOOLS)]
        at = self._iso(self._tick())
        failed = number % 7 == 3
        line: dict[str, Any] = {
            "event_type": "tool_execution",
            "timestamp": at,
            "tool_name": tool,
            "success": not failed,
            "execution_time_ms": number % 50,
        }
        if self.generation == 1:
            line |= {"user": "dev1", "session_id": self.session}
        else:
            activity = {"id": f"activity_{number}_{uuid.uuid4().hex[:9]}", "error_details": {"message": f"no {TOKEN}"}}
            line |= {"user": "dev1@example.test", "session_id": "default-session", "auth_token": TOKEN}
            line |= {"user_name": "Dev One", "enhanced_activity": activity}
        line |= {"command": f"curl -H 'Authorization: Bearer {TOKEN}'", "error_message": "Error: private words"}
        self.tools.mkdir(parents=True, exist_ok=True)
        with (self.tools / "tool-metrics.jsonl").open("a") as file:
            if tool == "Task":
                agent = {
                    "event_type": "agent_invocation",
                    "timestamp": at,
                    "agent_name": "code-reviewer",
                    "success": True,
                }
                file.write(json.dumps(agent) + "\n")
                line["subagent_type"] = "code-reviewer"
            file.write(json.dumps(line) + "\n")
        (self.tools / "productivity-indicators.json").write_text(json.dumps({"commands_executed": None}))
        self.calls.append((self.session, tool))

    def end(self) -> None:
        """Run session-end."""
        at = self._tick()
        summary = {
            "session_id": self.session,
            "start_time": self._iso(self.started),
            "end_time": self._iso(at),
            "duration_hours": 0,
            "productivity_score": 6.5,
            "trend": "good",
            "metrics": {"commands_executed": None, "success_rate": None},
        }
        end = {
            "event": "session_end",
            "timestamp": self._iso(at),
            "session_id": self.session,
            "productivity_score": 6.5,
        }
        with (self.agent / "sessions" / f"{self.session}.jsonl").open("a") as file:
            file.write(json.dumps(end) + "\n")
        self._document(f"sessions/{self.session}_summary.json", summary)
        with (self.agent / "session-history.jsonl").open("a") as file:
            file.write(json.dumps(summary) + "\n")
        (self.agent / ".current-session-id").unlink()

    def run(self, sessions: int, calls: int) -> None:
        """Work for some sessions."""
        for _ in range(sessions):
            self.start()
            for _ in range(calls):
                self.call()
            self.end()

    def _document(self, name: str, value: object) -> None:
        (self.agent / name).write_text(json.dumps(value, indent=2))

    def _tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    @staticmethod
    def _iso(at: datetime) -> str:
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")
