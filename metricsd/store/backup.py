"""Nightly copies of the store. A copy is complete or absent: it is written beside, synced, and renamed."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from pathlib import Path

from metricsd.clock import US_PER_S
from metricsd.crash import crash_point
from metricsd.errors import BackupFailed, StoreUnavailable
from metricsd.store.connection import Store, translated

ROOM_FACTOR = 2
"""A copy is made only where so many would fit."""
_PATTERN = "store-*.db"


def backup(store: Store, folder: Path, *, keep: int) -> Path | None:
    """Copy the store into `folder` as `store-<UTC day>.db` and keep the newest `keep`; None when `keep` is 0.

    Raises BackupFailed when the copy cannot be made now, StoreCorrupt when the store cannot be read whole.
    """
    if keep <= 0:
        return None
    day = dt.datetime.fromtimestamp(store.clock.now_us() // US_PER_S, dt.UTC).date()
    target = folder / f"store-{day:%Y%m%d}.db"
    partial = target.with_suffix(".partial")
    try:
        with translated(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sweep_partials(folder)
            _check_room(store, folder)
            store.db.execute("VACUUM INTO ?", (str(partial),))
            crash_point("during_backup")
            partial.chmod(0o600)
            sync_path(partial)
            partial.replace(target)
            sync_path(folder)
            for old in sorted(folder.glob(_PATTERN))[:-keep]:
                old.unlink(missing_ok=True)
    except StoreUnavailable as error:
        # Half a copy must not take the last of the disk.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise BackupFailed(f"the copy of the store could not be made: {error}") from error
    return target


def _check_room(store: Store, folder: Path) -> None:
    """Raise StoreUnavailable unless the disk holds a copy twice: what metricsd fills for itself, hooks cannot use."""
    found = os.statvfs(folder)
    free, needed = found.f_bavail * found.f_frsize, ROOM_FACTOR * store.sizes()[0]
    if free < needed:
        raise StoreUnavailable(
            f"{folder}: {free >> 20} MiB are free, a copy wants {needed >> 20}: free some disk space"
        )


def sweep_partials(folder: Path) -> None:
    """Remove what a kill left of unfinished copies. The caller holds the instance lock: nobody else is copying."""
    for left in folder.glob("*.partial*"):
        left.unlink(missing_ok=True)


def newest_backup(folder: Path) -> Path | None:
    """Return the newest nightly copy, or None."""
    return max(folder.glob(_PATTERN), default=None)


def backups_newest_first(folder: Path) -> list[Path]:
    """Return the nightly copies, then the copies made before schema steps, each newest first."""
    return [*sorted(folder.glob(_PATTERN), reverse=True), *sorted(folder.glob("before-schema-*.db"), reverse=True)]


def sync_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
