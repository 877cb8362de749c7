"""What metricsd takes of the disk, what is left of it, and what to do when a limit is reached.

Measuring and deciding are apart: `measure` asks the system, `pressure_on` is pure. What lies nearest to a limit is
made smaller by the caller: first the WAL, then the oldest rows that the cloud has; what nobody else has is never
dropped.
"""

from __future__ import annotations

import contextlib
import os
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from metricsd.config import Paths
from metricsd.config import Store as Settings
from metricsd.store.connection import wal_of

FLOOR_SHARE = 20
"""On a small disk the floor is one part in so many of it, if that is less than the setting."""
RETURN_SHARE = 8
"""Room counts as back once the floor is passed by one part in so many: no switching to and fro at the brink."""
STORE_SHARE = 20
"""The store counts as near its limit when less than one part in so many is left of it."""


class Usage(NamedTuple):
    """Bytes, as the system counts them. `store_bytes`: pages in use; `spare_bytes`: free pages inside the file."""

    free_bytes: int
    total_bytes: int
    store_bytes: int
    spare_bytes: int
    wal_bytes: int


class Pressure(StrEnum):
    """The limit that was reached."""

    DISK = "disk"
    """Less is free than `store.free_bytes_min`."""
    STORE = "store"
    """The store is near `store.bytes_max`."""
    WAL = "wal"
    """The WAL is larger than `store.wal_bytes_max`."""


def measure(paths: Paths, *, store_bytes: int, spare_bytes: int) -> Usage:
    """Return how the disk of this home stands; raise OSError when it cannot be asked."""
    found = os.statvfs(paths.state_dir)
    return Usage(
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        store_bytes=store_bytes,
        spare_bytes=spare_bytes,
        wal_bytes=size_of(wal_of(paths.store)),
    )


def size_of(path: Path) -> int:
    """Return a file's size; 0 when there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def floor_bytes(usage: Usage, settings: Settings, *, returning: bool = False) -> int:
    """Return how much must stay free; with `returning`, how much must be free again after it was not."""
    floor = min(settings.free_bytes_min, usage.total_bytes // FLOOR_SHARE)
    return floor + floor // RETURN_SHARE if returning else floor


def pressure_on(usage: Usage, settings: Settings, *, returning: bool = False) -> Pressure | None:
    """Return the most urgent limit that was reached; None when there is room. Pure."""
    if usage.free_bytes < floor_bytes(usage, settings, returning=returning):
        return Pressure.DISK
    if usage.store_bytes > settings.bytes_max - settings.bytes_max // STORE_SHARE:
        return Pressure.STORE
    if usage.wal_bytes > settings.wal_bytes_max:
        return Pressure.WAL
    return None
