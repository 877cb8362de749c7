"""Sources that tests of the migration read: the recorded folders, and small ones made on the spot."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metricsd.migration.model import Planned, Position, Rejected
from metricsd.migration.parse import START, Parser
from metricsd.migration.people import CREATE, make_people
from metricsd.migration.survey import survey
from metricsd.migration.transform import Transform
from metricsd.migration.work import Work

OPENED: list[Work] = []
"""Databases of runs that a test opened; conftest.py closes them."""
RECORDED = Path(__file__).parents[1] / "older" / "recorded"
BATCH = "m1.1"


def bring(name: str, target: Path) -> Path:
    """Copy a recorded folder."""
    return Path(shutil.copytree(RECORDED / name, target / name))


def surveyed(folder: Path, *roots: Path) -> Work:
    """Return the surveyed source; the run's database lies in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(folder / "work.db")
    OPENED.append(work)
    survey(work, list(roots), progress=lambda size: None)
    return work


def read(
    work: Work, after: Position = START, part_rows: int = 5000
) -> tuple[list[Planned], list[Rejected], list[Position]]:
    """Return everything behind a position, planned, what was rejected, and where the parts ended."""
    transform = Transform(work, make_people(CREATE, None, None))
    planned: list[Planned] = []
    rejected: list[Rejected] = []
    ends: list[Position] = []
    for piece in Parser(work, part_rows=part_rows).parts(after):
        planned.extend(transform.plan(row, BATCH) for row in piece.rows)
        rejected.extend(piece.rejected)
        ends.append(piece.after)
    return planned, rejected, ends


def write_lines(path: Path, lines: Iterable[object], *, packed: bool = False) -> Path:
    """Write lines: objects as JSON, text as it is."""
    data = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def call(at: str, tool: str = "Bash", session: str = "s1", **more: Any) -> dict[str, Any]:
    """Return a line of a call as the first generation writes it."""
    return {
        "event_type": "tool_execution", "timestamp": at, "tool_name": tool, "success": True,
        "execution_time_ms": 5, "user": "dev1", "session_id": session,
    } | more  # fmt: skip
