"""Reads and replaces a tool's settings file, and keeps what it was in a backup beside it.

A replacement is written beside the file and renamed over it, so that no reader ever sees half of one. Mode, owner and
a link in the file's place stay as they are, and a file that another program changed meanwhile is not overwritten.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from metricsd.errors import HooksError

BACKUP_MARK = ".metricsd-backup-"
# Backups looked at when uninstalling; a person who installed more often keeps the others.
BACKUPS_MAX = 50
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read(settings: Path) -> bytes | None:
    """Return the file's bytes, None when there is no file; raise HooksError when it cannot be read."""
    try:
        return settings.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HooksError(f"{settings}: cannot be read ({error.strerror}): check its permissions") from error


def decode(raw: bytes | None, settings: Path) -> str:
    """Return the text without a byte order mark; a missing or empty file is an empty object."""
    try:
        text = (raw or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HooksError(f"{settings}: not UTF-8 at byte {error.start}: save it as UTF-8, then try again") from error
    return text if text.strip() else "{}\n"


def encode(old: bytes | None, text: str) -> bytes:
    """Return the text's bytes, with a byte order mark if the old ones had one."""
    mark = _BYTE_ORDER_MARK if (old or b"").startswith(_BYTE_ORDER_MARK) else b""
    return mark + text.encode("utf-8")


def backups(settings: Path) -> Iterator[Path]:
    """Yield the newest backups of a settings file, newest first."""
    stem = settings.name + BACKUP_MARK
    found = sorted((file for file in settings.parent.iterdir() if file.name.startswith(stem)), reverse=True)
    yield from found[:BACKUPS_MAX]


def replace(settings: Path, old: bytes | None, new: bytes, *, keep_backup: bool = True) -> Path | None:
    """Put `new` in the place of `old` in one step, following a link; return the backup if one was made.

    Raises HooksError, with the file as it was, when another program changed it, when its owner cannot be kept, and
    when it cannot be written.
    """
    real = Path(os.path.realpath(settings))
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        like = None if old is None else real.stat()
        backup = _write_backup(settings, old, like) if old is not None and keep_backup else None
        if read(settings) != old:
            raise HooksError(f"{settings}: another program changed it just now: try again")
        write_atomically(real, new, like=like)
    except OSError as error:
        raise HooksError(f"{error.filename}: cannot be written ({error.strerror}): check its permissions") from error
    return backup


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, like: os.stat_result | None = None) -> None:
    """Write a file beside `path` and rename it over; `like` gives mode and owner. Raises OSError, path untouched."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            _keep_owner(file.fileno(), path, like)
            os.fchmod(file.fileno(), mode if like is None else stat.S_IMODE(like.st_mode))
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _keep_owner(fd: int, path: Path, like: os.stat_result | None) -> None:
    """Give the new file the owner and group of the old one, which the tool may need to write it again."""
    made = os.fstat(fd)
    if like is None or (made.st_uid, made.st_gid) == (like.st_uid, like.st_gid):
        return
    try:
        os.fchown(fd, like.st_uid, like.st_gid)
    except PermissionError as error:
        raise HooksError(
            f"{path}: belongs to user {like.st_uid}, group {like.st_gid}, which a new file of yours cannot be given: "
            f"run this as its owner"
        ) from error


def _write_backup(settings: Path, old: bytes, like: os.stat_result | None) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    backup = settings.with_name(f"{settings.name}{BACKUP_MARK}{stamp}")
    if backup.exists():
        backup = backup.with_name(f"{backup.name}-{secrets.token_hex(3)}")
    write_atomically(backup, old, like=like)
    return backup
