"""The on-disk contract with the hooks: where captures lie, how they are named, written, listed and opened.

A capture is one file in `SPOOL/new/` with one JSON line, `{"v":1,"s":SECOND,"app":..,"event":..,"payload":..}`; it
is complete when it ends in a newline. A payload above `PAYLOAD_BYTES_MAX` leaves a note with `"oversize":BYTES` in
place of `"payload"`. `hooks/capture` writes by the same rule without Python. This module must stay importable
within the 60 ms of `metricsd status`, and must never follow a link or wait on a file that someone planted.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metricsd.clock import US_PER_S, Clock, SystemClock
from metricsd.config import find_paths
from metricsd.errors import LineRejected, StoreUnavailable, UsageError

CAPTURE_VERSION = 1
CAPTURES_FOLDER = "new"
CAPTURE_SUFFIX = ".jsonl"
NAME_BYTES_MAX = 64  # of an event or an app: a file name of 255 bytes holds it with three numbers
PROBE_APP = "metricsd"
PROBE_EVENT = "DoctorProbe"
"""What `metricsd doctor` sends through the whole way: taken in and let go of like any capture, and never an event."""
UNKNOWN = "unknown"  # what the hook writes for an event or an app that does not fit a file name
LINE_BYTES_MAX = 16 * 1024 * 1024
PAYLOAD_BYTES_MAX = LINE_BYTES_MAX - 1024  # hooks/capture holds the same number
HEAD_BYTES_MAX = 256  # everything in a line but its payload
LIST_MAX = 5000  # captures per look: bounds memory when a long outage left millions
# A file's time is trusted when it lies this near the second in the line; a copy without times does not.
TIME_TRUST_NS = 2_000_000_000
_TRIES_MAX = 100
_READ_BYTES = 1024 * 1024
_NS_PER_S = 1_000_000_000
_NS_PER_US = 1_000

# Only an edit of the numbers above can break these.
assert PAYLOAD_BYTES_MAX + HEAD_BYTES_MAX <= LINE_BYTES_MAX  # noqa: S101
assert len('{"v":1,"s":,"app":"","event":"","payload":}\n') + 2 * NAME_BYTES_MAX + 20 <= HEAD_BYTES_MAX  # noqa: S101

_numbers = itertools.count()

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)-(\d{1,10})-(\d{1,10})-(\d{1,10})\.jsonl")


class CaptureName(NamedTuple):
    """What a capture's file name says: event, the hook's process and its parent, and a counter against reuse."""

    event: str
    pid: int
    ppid: int
    counter: int


class Listed(NamedTuple):
    """A file in `new/` that waits to be taken in."""

    name: str
    size: int
    mtime_ns: int


class OpenCapture(NamedTuple):
    """A capture that was opened safely. The caller closes `fd`."""

    fd: int
    size: int
    mtime_ns: int


class Pending(NamedTuple):
    """How much waits: files, bytes and the time of the oldest (None when nothing does)."""

    files: int
    bytes: int
    oldest_mtime_ns: int | None


def captures_folder(spool: Path) -> Path:
    """Return the folder that takes captures."""
    return spool / CAPTURES_FOLDER


def ensure_spool(spool: Path) -> Path:
    """Create the spool and its `new/` (0700), tighten what is looser and ours, and return `new/`.

    Raises StoreUnavailable that names the folder and what to do.
    """
    new = captures_folder(spool)
    for folder in (spool, new):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
                folder.chmod(0o700)
        except OSError as error:
            raise StoreUnavailable(
                f"{folder}: the spool cannot be made ({error.strerror}): make its parent a folder that you can write"
            ) from error
    return new


def capture_name(event: str, pid: int, ppid: int, counter: int) -> str:
    """Return the file name of a capture."""
    return f"{event}-{pid}-{ppid}-{counter}{CAPTURE_SUFFIX}"


def parse_name(name: str) -> CaptureName:
    """Return what a capture's file name says; raise LineRejected `capture_name` for any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise LineRejected("capture_name", f"{name!r} is not EVENT-PID-PPID-COUNTER{CAPTURE_SUFFIX}")
    event, pid, ppid, counter = match.groups()
    return CaptureName(event, int(pid), int(ppid), int(counter))


def is_probe(app: str, event: str) -> bool:
    """Return whether a line is the doctor's, which must not show in anybody's figures."""
    return event == PROBE_EVENT and app == PROBE_APP


def event_time_us(second: int | None, mtime_ns: int) -> int:
    """Return when a capture happened, in microseconds UTC: the file's time if it lies near `second`, else `second`.

    A `second` of 0 (or none) means that the hook could not know it; then the file's time is all there is.
    """
    if second is None or second <= 0 or abs(mtime_ns - second * _NS_PER_S) <= TIME_TRUST_NS:
        return mtime_ns // _NS_PER_US
    return second * US_PER_S


def scan_captures(spool: Path) -> Iterator[Listed]:
    """Yield the files of `new/`, in no order. A missing folder is an empty one; raise OSError if it cannot be read."""
    try:
        entries = os.scandir(captures_folder(spool))
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    continue
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # taken in since the folder was read
            yield Listed(entry.name, status.st_size, status.st_mtime_ns)


def list_captures(spool: Path, limit: int = LIST_MAX) -> list[Listed]:
    """Return the oldest `limit` files of `new/`, by time and then name. A missing folder is an empty one."""
    return heapq.nsmallest(limit, scan_captures(spool), key=lambda capture: (capture.mtime_ns, capture.name))


def pending(spool: Path) -> Pending:
    """Return how much waits in `new/`, every file counted. A missing folder is an empty one."""
    files = size = 0
    oldest: int | None = None
    for capture in scan_captures(spool):
        files += 1
        size += capture.size
        oldest = capture.mtime_ns if oldest is None else min(oldest, capture.mtime_ns)
    return Pending(files, size, oldest)


def open_capture(spool: Path, name: str) -> OpenCapture:
    """Open a capture for reading, without following links and without ever waiting.

    Raises FileNotFoundError when it is gone, LineRejected with `capture_path`, `capture_symlink`,
    `capture_not_regular`, `capture_owner`, `capture_hard_link` or `capture_unreadable` when it is not a plain file
    of this user (or root).
    """
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise LineRejected("capture_path", f"{name!r} is not a file name")
    try:
        fd = os.open(f"{spool}/{CAPTURES_FOLDER}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LineRejected(_open_reason(error), f"{name}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        _check_plain(name, status)
    except BaseException:
        os.close(fd)
        raise
    return OpenCapture(fd, status.st_size, status.st_mtime_ns)


class LoadedCapture(NamedTuple):
    """A capture's bytes, and its file's size and time when it was opened."""

    data: bytes
    size: int
    mtime_ns: int


def read_capture(spool: Path, name: str, bytes_max: int = LINE_BYTES_MAX) -> bytes:
    """Return the bytes of a capture; see `load_capture`."""
    return load_capture(spool, name, bytes_max).data


def load_capture(spool: Path, name: str, bytes_max: int = LINE_BYTES_MAX) -> LoadedCapture:
    """Return a capture, opened as `open_capture` does and with its errors.

    Raises LineRejected `oversize` beyond `bytes_max`, before anything is read.
    """
    capture = open_capture(spool, name)
    try:
        if capture.size > bytes_max:
            raise LineRejected("oversize", f"{name} has {capture.size} bytes, at most {bytes_max}")
        parts: list[bytes] = []
        left = bytes_max
        # A hook may still write; what it adds beyond the limit is another look's matter.
        while left > 0 and (part := os.read(capture.fd, min(left, _READ_BYTES))):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise LineRejected("capture_unreadable", f"{name}: {error.strerror}") from error
    finally:
        os.close(capture.fd)
    return LoadedCapture(parts[0] if len(parts) == 1 else b"".join(parts), capture.size, capture.mtime_ns)


def size_of(spool: Path, name: str) -> int:
    """Return the size of what lies in `new/` under a name, links not followed; 0 when that cannot be told."""
    try:
        return (captures_folder(spool) / name).lstat().st_size
    except OSError:
        return 0


def append(
    event: str, payload: Any, *, app: str = "metricsd", spool: Path | None = None, clock: Clock | None = None
) -> Path:
    """Write a capture of a JSON value by the hooks' rule and return its path.

    Raises UsageError for an event, app or payload that no capture can hold, StoreUnavailable when the spool cannot
    be written; then no file is left.
    """
    for what, word in (("event", event), ("app", app)):
        if not _WORD.fullmatch(word) or len(word) > NAME_BYTES_MAX:
            raise UsageError(f"{what} {word!r} must be 1 to {NAME_BYTES_MAX} of the characters A-Z a-z 0-9 _ . -")
    second = (clock or SystemClock()).now_us() // US_PER_S
    line = _line(second, app, event, payload)
    new = ensure_spool(find_paths().spool if spool is None else spool)
    for _ in range(_TRIES_MAX):
        # Never the same number twice in a process: a name that was free again, with the same bytes in the same
        # second, would have the id of the capture that was taken in before.
        path = new / capture_name(event, os.getpid(), os.getppid(), next(_numbers))
        with contextlib.suppress(FileExistsError):
            _write_new(path, line)
            return path
    raise StoreUnavailable(
        f"{new}: {_TRIES_MAX} names for a capture are taken: empty the folder or start the daemon with `metricsd up`"
    )


def _line(second: int, app: str, event: str, payload: Any) -> bytes:
    import json

    try:
        text = json.dumps(payload, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the payload of {event} is not JSON: {error}") from error
    if len(text) > PAYLOAD_BYTES_MAX:
        raise UsageError(
            f"the payload of {event} has {len(text)} bytes; at most {PAYLOAD_BYTES_MAX} fit into a capture"
        )
    head = f'{{"v":{CAPTURE_VERSION},"s":{second},"app":"{app}","event":"{event}","payload":'
    return head.encode("ascii") + text + b"}\n"


def _write_new(path: Path, line: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise
    except OSError as error:
        raise StoreUnavailable(f"{path}: cannot be made ({error.strerror}): check the folder's permissions") from error
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StoreUnavailable(f"{path}: cannot be written ({error.strerror}): free disk space") from error
    finally:
        os.close(fd)


def _open_reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "capture_symlink"
    # A socket cannot be opened at all.
    return "capture_not_regular" if error.errno in (errno.ENXIO, errno.EOPNOTSUPP) else "capture_unreadable"


def _check_plain(name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LineRejected("capture_not_regular", f"{name} is not a plain file")
    if status.st_uid not in (os.geteuid(), 0):
        raise LineRejected("capture_owner", f"{name} belongs to uid {status.st_uid}")
    if status.st_nlink != 1:
        raise LineRejected("capture_hard_link", f"{name} has {status.st_nlink} names")
