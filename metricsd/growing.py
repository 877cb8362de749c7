"""One file that others append to: how it is recognised, and how it is cut into whole lines.

A file is found by device and inode and trusted by two hashes, of its head and of what stands just before the offset.
Lines are cut in bytes, at newline bytes alone, and memory stays bounded by one chunk or one line. A file is never
written, renamed or truncated here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator
from hashlib import blake2b
from pathlib import PurePath
from typing import NamedTuple

from metricsd.ids import Occurrences
from metricsd.store.quarantine import Reject
from metricsd.store.sources import Checkpoint

CHUNK_BYTES = 2 * 1024 * 1024
HEAD_BYTES = 1024
MARK_BYTES = 4096
"""Compared before the offset, or the whole last line if that is longer: many lines end alike, and short ones recur."""
SKIP_STEP_BYTES = 1024 * 1024
SUFFIX = ".jsonl"
OLDER_FOLDERS = ("sessions", "tool_metrics")
"""Folders of the older hooks' documents, below their root."""
COPIES_OPENED_MAX = 64
"""Files of a folder that are compared by content, newest first, when a truncated file's copy is looked for."""
_ROTATED = "#"
_PACKED = (".gz", ".xz", ".bz2", ".zst", ".lz4", ".zip")


class Piece(NamedTuple):
    """What a reader cut off: whole lines with their newlines, or a line that was walked over, or NULs of a hole."""

    data: bytes
    length: int
    lines: int
    reject: Reject | None = None


class Found(NamedTuple):
    """A file of a folder: where it lies and what it is."""

    path: str
    status: os.stat_result


def follows(name: str) -> bool:
    """Return whether a file of this name in a followed folder is a shared file."""
    return name.endswith(SUFFIX) and not name.startswith(".")


def folders_of(roots: Iterable[str]) -> list[str]:
    """Return the folders of the older hooks that hold what is read, below each of their roots."""
    return [place for root in roots for place in (root, *(f"{root}/{name}" for name in OLDER_FOLDERS))]


def place_of(setting: str) -> str:
    """Return the absolute path that an entry of `[tail] sources` names."""
    return os.path.abspath(os.path.expanduser(setting))  # noqa: PTH100, PTH111


def fresh(path: str, found: os.stat_result, form: str) -> Checkpoint:
    """Return the checkpoint of a file of which nothing has been read; `form` says how its lines are read."""
    return Checkpoint(path, form, found.st_dev, found.st_ino, 0, b"", 0, b"", 0, 0, b"", _written_us(found))


def stamp_of(found: os.stat_result) -> tuple[int, ...]:
    """Return what changes whenever a file does, as far as its metadata can tell."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def rotated_place(path: str, found: os.stat_result) -> str:
    """Return under what the checkpoint of a file that lost its name is kept.

    Not under its new name: rotation goes on renaming such a file, and gives the name to the next one.
    """
    return f"{path}{_ROTATED}{found.st_ino}"


def path_before(place: str) -> str:
    """Return the path that a file had before `rotated_place`; other paths as they are."""
    path, mark, inode = place.rpartition(_ROTATED)
    return path if mark and inode.isdecimal() else place


def name_of(place: str) -> str:
    """Return a file's name, as people know it."""
    return PurePath(path_before(place)).name


def inode_of(found: os.stat_result) -> tuple[int, int]:
    """Return what names a file while it exists, whatever it is called."""
    return (found.st_dev, found.st_ino)


def is_same_file(checkpoint: Checkpoint, found: os.stat_result) -> bool:
    """Return whether this is the file that the checkpoint was made for, by device and inode alone."""
    return (checkpoint.dev, checkpoint.ino) == (found.st_dev, found.st_ino)


def is_trusted(handle: int, checkpoint: Checkpoint, found: os.stat_result) -> bool:
    """Return whether the open file is the checkpoint's, with nothing before the offset changed."""
    return is_same_file(checkpoint, found) and has_content(handle, checkpoint, found.st_size)


def has_content(handle: int, checkpoint: Checkpoint, size: int) -> bool:
    """Return whether the open file begins with what was read: it may be the same file, or a copy of it."""
    if checkpoint.offset == 0:
        return True
    if size < checkpoint.offset:
        return False
    head = os.pread(handle, checkpoint.head_len, 0)
    mark = os.pread(handle, checkpoint.mark_len, checkpoint.offset - checkpoint.mark_len)
    return _hash(head) == checkpoint.head_hash and _hash(mark) == checkpoint.mark_hash


def open_plain(path: str) -> int:
    """Open a file for reading, without ever waiting; raise OSError, also for what is no plain file."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no plain file")
    return handle


def find_moved(
    folder: str, old: Checkpoint, is_taken: Callable[[str], bool], followed: Container[tuple[int, int]]
) -> list[Found]:
    """Return where the file that was read under `old.path` lies now, with what was rotated after it; else nothing.

    It is the file with the checkpoint's inode and content, under whatever name, or else a copy of its content (as
    copytruncate makes it). Rotations of the same name that were written since then follow, because they were born
    and rotated between two looks. Paths that are taken are read under their own names. Files in `followed`, by device
    and inode, are no copies of this one: they are read already, whatever they are called by now. With nothing read yet
    the inode alone decides, so the caller must hold the file open: then no other file can have it.
    """
    files = [found for found in _plain_files(folder) if not is_taken(found.path)]
    moved = next((found for found in files if is_same_file(old, found.status) and _opens_as(found, old)), None)
    if moved is None and old.offset:
        files.sort(key=lambda found: found.status.st_mtime_ns, reverse=True)
        others = [found for found in files if found.path != old.path and inode_of(found.status) not in followed]
        large = [found for found in others if found.status.st_size >= old.offset]
        moved = next((found for found in large[:COPIES_OPENED_MAX] if _opens_as(found, old)), None)
    if moved is None:
        return []
    # Its writer may have gone on in it after it lost its name.
    since = min(_written_us(moved.status), old.seen_at)
    later = [found for found in files if is_rotation(found, old.path) and _written_us(found.status) >= since]
    return [moved, *(found for found in later if found is not moved)]


def is_rotation(found: Found, path: str) -> bool:
    """Return whether the file's name is the path's with something behind it, as logrotate names them."""
    return found.path.startswith((f"{path}.", f"{path}-"))


class Reader:
    """Cuts one open file into pieces of whole lines, never holding more than a chunk or one line."""

    def __init__(self, handle: int, checkpoint: Checkpoint, line_bytes_max: int) -> None:
        self._handle = handle
        self._line_bytes_max = line_bytes_max
        self.checkpoint = checkpoint

    def pieces(self) -> Iterator[Piece]:
        """Yield from the checkpoint on; the caller moves `checkpoint` behind each piece before it asks for the next."""
        size = CHUNK_BYTES
        while True:
            data = os.pread(self._handle, size, self.checkpoint.offset)
            end = data.rfind(b"\n") + 1
            if end:
                size = CHUNK_BYTES
                yield Piece(data[:end], end, data.count(b"\n", 0, end))
            elif data[:1] == b"\0" and (hole := self._length_of_hole()):
                yield Piece(b"", hole, 0)
            elif len(data) < size:
                # The line is not finished: it stays in the file until its newline comes.
                return
            elif size <= self._line_bytes_max:
                size *= 4
            else:
                length = self._length_of_line()
                if length is None:
                    return
                name, offset = name_of(self.checkpoint.path), self.checkpoint.offset
                yield Piece(b"", length, 1, Reject(name, offset, None, "too_long", "", length))

    def after(self, piece: Piece, occurrences: Occurrences) -> Checkpoint:
        """Return the checkpoint behind a piece."""
        before = self.checkpoint
        offset = before.offset + piece.length
        head = os.pread(self._handle, min(offset, HEAD_BYTES), 0)
        last_line = len(piece.data) - piece.data.rfind(b"\n", 0, -1) - 1
        mark_len = min(offset, max(MARK_BYTES, last_line))
        mark = os.pread(self._handle, mark_len, offset - mark_len)
        return before._replace(
            head_len=len(head), head_hash=_hash(head), mark_len=len(mark), mark_hash=_hash(mark),
            offset=offset, lines=before.lines + piece.lines, occurrences=occurrences.pack(),
            seen_at=_written_us(os.fstat(self._handle)),
        )  # fmt: skip

    def rest(self, bytes_max: int) -> bytes:
        """Return the unfinished line behind the checkpoint, cut at `bytes_max`."""
        return os.pread(self._handle, bytes_max, self.checkpoint.offset)

    def _length_of_hole(self) -> int:
        """Return how many NULs lie before the next other byte; 0 while nothing but NULs follows.

        A writer that kept its place over a truncation leaves such a hole. Zeros at the end of a file may be room
        that somebody reserved and will fill, so they are not walked over.
        """
        start = offset = self.checkpoint.offset
        while True:
            try:
                # Where the file system knows its holes, gigabytes of them cost one call.
                offset = os.lseek(self._handle, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return 0
            data = os.pread(self._handle, SKIP_STEP_BYTES, offset)
            text = data.lstrip(b"\0")
            offset += len(data) - len(text)
            if text:
                return offset - start
            if not data:
                return 0

    def _length_of_line(self) -> int | None:
        """Return the over-long line's length with its newline, or None while it is not finished. Memory stays flat."""
        offset = self.checkpoint.offset
        while data := os.pread(self._handle, SKIP_STEP_BYTES, offset):
            end = data.find(b"\n")
            if end >= 0:
                return offset + end + 1 - self.checkpoint.offset
            offset += len(data)
        return None


def _plain_files(folder: str) -> list[Found]:
    """Return the plain files of a folder; nothing when it cannot be read now."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and not entry.name.endswith(_PACKED):
                    found.append(Found(entry.path, entry.stat(follow_symlinks=False)))
    return found


def _opens_as(found: Found, old: Checkpoint) -> bool:
    try:
        handle = open_plain(found.path)
    except OSError:
        return False
    try:
        return has_content(handle, old, os.fstat(handle).st_size)
    except OSError:
        return False
    finally:
        os.close(handle)


def _written_us(found: os.stat_result) -> int:
    return found.st_mtime_ns // 1000


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
