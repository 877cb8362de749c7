"""A home with the folders of the older hooks, and what those hooks write into them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from metricsd.config import Tail as Settings
from metricsd.model import Event
from tests.fakes import FakeClock
from tests.tail.conftest import Rig

RECORDED = Path(__file__).parent / "recorded"
NAMES = {"first": "c742de6a-56a3-4558-a564-0277dee8108e", "second": "bb73fe70-4164-4a73-ab7d-85e2bcecf83d"}
TOKEN = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2"


class Older(Rig):
    """A home with the two folders of the older hooks."""

    def __init__(self, folder: Path) -> None:
        self.agent, self.mesh = folder / "agent" / "metrics", folder / "mesh" / "metrics"
        settings = Settings(older_hooks=(str(self.agent), str(self.mesh)), rescan_s=0.05)
        super().__init__(folder, FakeClock(), settings)

    def bring(self, name: str, *trees: str) -> None:
        """Put a recorded folder in place, or those of its trees (`agent`, `mesh`)."""
        for tree in (RECORDED / name).iterdir():
            if not trees or tree.name in trees:
                shutil.copytree(tree, self.folder / tree.name, dirs_exist_ok=True)

    def later(self) -> None:
        """Let the next look take everything in."""
        self.clock.advance(10.0)
        self.tick()

    def quiet(self) -> None:
        """Let everything be taken in, and earlier calls be claimed."""
        self.later()
        self.later()

    def write(self, path: Path, *lines: object) -> None:
        """Append lines as the hooks do."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def document(self, name: str, value: object) -> Path:
        """Write a document of the first folder's sessions as a whole."""
        path = self.agent / "sessions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    @property
    def owners(self) -> list[str | None]:
        """The sessions of the calls, in the order in which they were stored."""
        return [event.session for event in self.of("tool_used")]


def call(session: str, at: str, **more: Any) -> dict[str, Any]:
    """Return a line of the second generation."""
    return {
        "event_type": "tool_execution",
        "timestamp": at,
        "tool_name": "Bash",
        "success": True,
        "execution_time_ms": 5,
        "user": "dev1@example.test",
        "session_id": session,
        "auth_token": TOKEN,
        "command": f"git push --token={TOKEN}",
    } | more


def start(session: str, at: str, user: str = "dev1") -> dict[str, Any]:
    """Return a session's first record."""
    return {
        "session_id": session,
        "start_time": at,
        "user": user,
        "working_directory": "/home/dev1/shop",
        "git_branch": "main",
    }


def summary(session: str, began: str, ended: str, score: float = 8) -> dict[str, Any]:
    """Return a session's summary."""
    return {"session_id": session, "start_time": began, "end_time": ended, "productivity_score": score}
