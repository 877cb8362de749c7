"""What keeps the store from being used, as one word, one sentence and a time.

Whoever looks after the store turns errors into a `StoreTrouble` here; the failover decides by its kind, people read
its reason, which always ends in what to do. Nothing here repairs anything.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from metricsd.errors import SchemaTooNew, StoreCorrupt, StoreError

_WAITS = "captures wait in the spool meanwhile"


class TroubleKind(StrEnum):
    """Why the store cannot be used."""

    FULL = "full"
    """The disk has no room, or less than is to stay free."""
    QUOTA = "quota"
    """The user's quota on the disk, or the store's own limit, is used up."""
    READ_ONLY = "read_only"
    """The file system was mounted read-only, as after a fault of the disk."""
    PERMISSION = "permission"
    """This user may not write the file or its folder."""
    CORRUPT = "corrupt"
    """The file is damaged."""
    MISSING = "missing"
    """The file was deleted or replaced while it was open."""
    NEWER = "newer"
    """A newer metricsd wrote it."""
    BUSY = "busy"
    """Another program holds it for longer than a write can wait."""
    FAILING = "failing"
    """The disk answers with errors."""


class StoreTrouble(NamedTuple):
    """The trouble, in a sentence that says what to do, and since when (microseconds UTC)."""

    kind: TroubleKind
    reason: str
    since_us: int


_FIX = {
    TroubleKind.FULL: f"free some disk space; {_WAITS}",
    TroubleKind.QUOTA: f"free some space of your quota; {_WAITS}",
    TroubleKind.READ_ONLY: f"the file system is read-only: check the disk and mount it writable again; {_WAITS}",
    TroubleKind.PERMISSION: f"give this user the right to write the file and its folder; {_WAITS}",
    TroubleKind.CORRUPT: f"it is repaired as soon as the disk allows; {_WAITS}",
    TroubleKind.MISSING: f"it is put back as soon as the disk allows; {_WAITS}",
    TroubleKind.NEWER: f"upgrade metricsd; {_WAITS}",
    TroubleKind.BUSY: f"another program holds it: end that program; {_WAITS}",
    TroubleKind.FAILING: f"check the disk (the system's log names the fault); {_WAITS}",
}

_BY_ERRNO = {
    errno.ENOSPC: TroubleKind.FULL,
    errno.EDQUOT: TroubleKind.QUOTA,
    errno.EROFS: TroubleKind.READ_ONLY,
    errno.EACCES: TroubleKind.PERMISSION,
    errno.EPERM: TroubleKind.PERMISSION,
    errno.ENOENT: TroubleKind.MISSING,
}
_BY_SQLITE = {
    sqlite3.SQLITE_FULL: TroubleKind.FULL,
    sqlite3.SQLITE_BUSY: TroubleKind.BUSY,
    sqlite3.SQLITE_LOCKED: TroubleKind.BUSY,
    sqlite3.SQLITE_PERM: TroubleKind.PERMISSION,
    sqlite3.SQLITE_AUTH: TroubleKind.PERMISSION,
}
_UNCLEAR = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
"""Codes behind which SQLite hides the system's own error: the folder is asked instead."""


def trouble_of(error: StoreError, path: Path, now_us: int) -> StoreTrouble:
    """Return the trouble that an error of the store at `path` stands for."""
    return told(_kind_of(error, path), path, now_us, detail=_detail(error))


def told(kind: TroubleKind, path: Path, now_us: int, *, detail: str = "", fix: str | None = None) -> StoreTrouble:
    """Return a trouble in its usual words, or with another fix."""
    what = f"{path} cannot be used now ({detail or kind.value})"
    return StoreTrouble(kind, f"{what}: {fix or _FIX[kind]}", now_us)


def _kind_of(error: StoreError, path: Path) -> TroubleKind:
    if isinstance(error, SchemaTooNew):
        return TroubleKind.NEWER
    if isinstance(error, StoreCorrupt):
        return TroubleKind.CORRUPT
    cause = error.__cause__
    if isinstance(cause, OSError):
        return _BY_ERRNO.get(cause.errno or 0, TroubleKind.FAILING)
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return TroubleKind.MISSING
        known = _BY_SQLITE.get(code & 0xFF)
        if known is not None:
            return known
        if code & 0xFF in _UNCLEAR:
            return ask_folder(path) or TroubleKind.FAILING
    return TroubleKind.FAILING


def is_writable(path: Path) -> bool:
    """Return whether this user may write the file and make others beside it. Costs two calls to the system."""
    effective = os.access in os.supports_effective_ids
    return os.access(path, os.R_OK | os.W_OK, effective_ids=effective) and os.access(
        path.parent, os.W_OK | os.X_OK, effective_ids=effective
    )


def ask_folder(path: Path) -> TroubleKind | None:
    """Return why the file or its folder cannot be written, by trying it; None when they can."""
    probe = path.with_name(f".{path.name}.probe")
    try:
        if path.exists() and not os.access(
            path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids
        ):
            is_read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
            return TroubleKind.READ_ONLY if is_read_only else TroubleKind.PERMISSION
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, b"\0" * 4096)
        finally:
            os.close(descriptor)
            probe.unlink(missing_ok=True)
    except OSError as error:
        return _BY_ERRNO.get(error.errno or 0, TroubleKind.FAILING)
    return None


def _detail(error: StoreError) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) if cause is not None else str(error)
