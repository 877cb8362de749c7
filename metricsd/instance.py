"""One instance per home: an advisory lock on `daemon.lock`, held for as long as its holder lives.

The kernel drops the lock with the process, so a kill -9 never leaves a stale one; the file's content only says who
holds it, for people and for `metricsd down`. Nothing here ever removes the file: another process could be waiting
on the old inode while a third locks a new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from metricsd import __version__
from metricsd.errors import AlreadyRunning, StoreUnavailable

# A look at the lock (`find_holder`) takes it shared for an instant; an honest start must outlast that.
_ACQUIRE_TRIES = 10
_ACQUIRE_PAUSE_S = 0.02
_CONTENT_BYTES_MAX = 4096


class Holder(NamedTuple):
    """Who holds the lock. `pid` is 0 when the holder has not written its name yet; `started` is epoch seconds."""

    pid: int
    role: str
    started: float
    version: str


class InstanceLock:
    """The held lock. Use as a context manager, or call `release()`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def acquire(cls, path: Path, role: str) -> InstanceLock:
        """Take the lock for `role` ("daemon", "sync"); raise AlreadyRunning that names the holder."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"{path}: cannot be created ({error.strerror}): check the folder's permissions"
            ) from error
        for attempt in range(_ACQUIRE_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _ACQUIRE_TRIES - 1:
                    os.close(fd)
                    raise AlreadyRunning(_who(path)) from None
                time.sleep(_ACQUIRE_PAUSE_S)
        _write_name(fd, role)
        return cls(fd)

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> InstanceLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def find_holder(path: Path) -> Holder | None:
    """Return who holds the lock at `path`, or None when nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_name(fd)
        return None
    finally:
        os.close(fd)


def _write_name(fd: int, role: str) -> None:
    name = {"pid": os.getpid(), "role": role, "started": time.time(), "version": __version__}
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(name).encode(), 0)
    except OSError:
        # A full disk must not keep the daemon from starting: the lock itself needs no space.
        return


def _read_name(fd: int) -> Holder:
    try:
        found = json.loads(os.pread(fd, _CONTENT_BYTES_MAX, 0))
        return Holder(int(found["pid"]), str(found["role"]), float(found["started"]), str(found["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, "daemon", 0.0, "")


def _who(path: Path) -> str:
    holder = find_holder(path)
    pid = f" (pid {holder.pid})" if holder and holder.pid else ""
    if holder and holder.role == "sync":
        return f"`metricsd sync`{pid} is at work in this home: try again when it has ended"
    return f"a daemon{pid} already runs in this home: `metricsd status` shows it, `metricsd down` stops it"
