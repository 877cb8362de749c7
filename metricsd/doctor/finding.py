"""What the doctor is given, and what it says: a line for each thing that it looked at.

Four levels. `ok`; `warn`: works, but look; `fail`: something that the user set up does not work; `not_used`: not set up,
which is never a fault. Every line that is not ok has one thing to do. A repair is offered only where it is ours to do
and can be done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from metricsd.config import Config, Paths
from metricsd.hooks.places import Places

Repair = Callable[[], object]


class Level(StrEnum):
    """How a line stands."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    NOT_USED = "not_used"


class Finding(NamedTuple):
    """One line: what was looked at, how it stands, in words, and the one thing to do about it."""

    check: str
    level: Level
    says: str
    fix: str = ""
    repair: Repair | None = None


class Facts(NamedTuple):
    """What the checks look at. `status` is what `metricsd status --json` says; `start` starts or replaces the daemon."""

    paths: Paths
    config: Config
    environ: Mapping[str, str]
    places: Places
    status: Mapping[str, Any]
    start: Repair

    @property
    def runs(self) -> bool:
        """Whether the daemon runs and answers."""
        return self.status["daemon"]["running"] is True

    @property
    def logged_in(self) -> bool:
        """Whether this installation was made a device of a cloud."""
        return self.paths.credentials.exists()


def ok(check: str, says: str) -> Finding:
    """Return a line about something that is well."""
    return Finding(check, Level.OK, says)


def not_used(check: str, says: str, fix: str = "") -> Finding:
    """Return a line about something that the user did not set up."""
    return Finding(check, Level.NOT_USED, says, fix)


def warn(check: str, says: str, fix: str, repair: Repair | None = None) -> Finding:
    """Return a line about something that works but wants a look."""
    return Finding(check, Level.WARN, says, fix, repair)


def fail(check: str, says: str, fix: str, repair: Repair | None = None) -> Finding:
    """Return a line about something that was set up and does not work."""
    return Finding(check, Level.FAIL, says, fix, repair)


def size_text(size_bytes: float) -> str:
    """Return a size as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
