"""Named points at which a test may kill the process, as a kill -9 would.

Without METRICSD_CRASH_AT in the environment a point costs one comparison and does nothing; with it
(`after_commit`, or `after_commit:3` for the third pass) the process kills itself there, so that nothing is flushed,
closed or cleaned up. A point must never change what the code around it does.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

VARIABLE = "METRICSD_CRASH_AT"
Point = Literal[
    "after_insert",
    "before_commit",
    "after_commit",
    "before_unlink",
    "half_of_unlinks",
    "during_backup",
    "during_schema_step",
    "after_answer_before_ack",
]
MigrationPoint = Literal[
    "migrate_surveyed",
    "migrate_part_validated",
    "migrate_part_ledger",
    "migrate_part_inserted",
    "migrate_part_stored",
    "migrate_loaded",
    "migrate_compared",
    "migrate_reported",
]
RollbackPoint = Literal["rollback_planned", "rollback_part", "rollback_proven", "rolled_back"]
POINTS: tuple[Point, ...] = get_args(Point)
MIGRATION_POINTS: tuple[MigrationPoint, ...] = get_args(MigrationPoint)
"""The edges of a migration's stages."""
ROLLBACK_POINTS: tuple[RollbackPoint, ...] = get_args(RollbackPoint)
"""The edges of a rollback: all but the last one inside its transaction."""

_wanted, _, _pass = os.environ.get(VARIABLE, "").partition(":")
_passes_left = int(_pass) if _pass.isdecimal() else 1


def crash_point(name: Point | MigrationPoint | RollbackPoint) -> None:
    """Kill this process if the environment asks for it here; else do nothing."""
    if _wanted and name == _wanted:
        _count_down()


def _count_down() -> None:
    global _passes_left
    _passes_left -= 1
    if _passes_left == 0:
        _die()


def _die() -> None:
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
