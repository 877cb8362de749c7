"""Reads what hooks and other programs wrote and hands it to the store, exactly once.

Captures (one file each, consumed once) are deleted only after a commit that is on disk; shared files (others append
to them) are never touched and are read from a checkpoint that commits with the rows it covers. On any doubt about a
file it is read again from its start: event ids make that harmless, whereas a skipped byte is lost. One `tick()` does
a bounded amount of work; `Watcher` says when to tick.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

import watchfiles

from metricsd import spool
from metricsd.clock import US_PER_S, Clock
from metricsd.config import Tail as Settings
from metricsd.crash import crash_point
from metricsd.decode import decode_line, parse_line
from metricsd.decode.envelope import stamp_us
from metricsd.decode.repository import Repositories
from metricsd.errors import LineRejected
from metricsd.ids import Occurrences, capture_id, line_fact, line_id
from metricsd.store.events import Identified
from metricsd.store.ingest import Taken
from metricsd.store.quarantine import Reject
from metricsd.store.sources import Checkpoint

CAPTURES_PER_TICK = 500
CAPTURE_BYTES_PER_TICK = 8 * 1024 * 1024
CHUNK_BYTES = 2 * 1024 * 1024
CHUNKS_PER_TICK = 8
HEAD_BYTES = 1024
MARK_BYTES = 64
SKIP_STEP_BYTES = 1024 * 1024
SHARED_FORM = "shared"
SUFFIX = ".jsonl"


# What SQLite's binding raises for one value that it cannot store; a StoreError (disk, lock) is none of these.
_REFUSALS = (sqlite3.Error, OverflowError, UnicodeError, TypeError, ValueError)


class _Capture(NamedTuple):
    """One capture that was read: its bytes, and either its event or its rejection."""

    name: str
    data: bytes
    item: Identified | None
    reject: Reject | None


class Sink(Protocol):
    """Where lines go: the store's Ingest."""

    def take(
        self,
        items: list[Identified],
        *,
        rejects: list[Reject] = ...,
        checkpoint: Checkpoint | None = ...,
        full: bool = ...,
    ) -> Taken:
        """Commit one unit, or raise and store nothing of it."""
        ...


class Ticked(NamedTuple):
    """What one tick did. `more` says that work is left and the next tick should come at once."""

    added: int
    known: int
    rejected: int
    more: bool


class Tail:
    """The reading end of one spool. Belongs to the thread that writes the store."""

    def __init__(
        self,
        sink: Sink,
        folder: Path,
        settings: Settings,
        installation_key: bytes,
        clock: Clock,
        checkpoints: dict[str, Checkpoint],
    ) -> None:
        self._sink = sink
        self._folder = folder
        self._new = folder / "new"
        self._settings = settings
        self._key = installation_key
        self._clock = clock
        self._repositories = Repositories(clock)
        self._checkpoints = checkpoints
        self._unchanged: dict[str, tuple[int, ...]] = {}

    def tick(self) -> Ticked:
        """Take in one bounded round: captures first, then each shared file. Raises StoreError, and nothing is lost then."""
        done = self._take_captures()
        for path in _shared_files(self._folder):
            done = _sum(done, self._take_shared(path))
        return done

    def _take_captures(self) -> Ticked:
        listed = spool.list_captures(self._folder, limit=CAPTURES_PER_TICK)
        captures: list[_Capture] = []
        size = 0
        for entry in listed:
            if size >= CAPTURE_BYTES_PER_TICK:
                break
            capture = self._read_capture(entry)
            if capture is not None:
                captures.append(capture)
                size += entry.size
        if not captures:
            return Ticked(0, 0, 0, more=False)
        taken = self._take_split(captures)
        crash_point("before_unlink")
        for number, capture in enumerate(captures):
            if number == len(captures) // 2:
                crash_point("half_of_unlinks")
            # Only now, after a commit that is on disk, may the capture go.
            with contextlib.suppress(FileNotFoundError):
                (self._new / capture.name).unlink()
        return Ticked(
            taken.added,
            taken.known + taken.twins,
            taken.rejected,
            more=len(listed) == CAPTURES_PER_TICK or size >= CAPTURE_BYTES_PER_TICK,
        )

    def _take_split(self, captures: list[_Capture]) -> Taken:
        """Take captures in; if one of them breaks the statement, find it and quarantine it alone."""
        items = [capture.item for capture in captures if capture.item is not None]
        rejects = [capture.reject for capture in captures if capture.reject is not None]
        try:
            return self._sink.take(items, rejects=rejects, full=True)
        except _REFUSALS as error:
            if len(captures) == 1:
                refused = Reject(f"new/{captures[0].name}", 0, captures[0].data, "store_refused", type(error).__name__)
                return self._sink.take([], rejects=[refused], full=True)
            half = len(captures) // 2
            return _plus(self._take_split(captures[:half]), self._take_split(captures[half:]))

    def _read_capture(self, entry: spool.Listed) -> _Capture | None:
        """Return the capture, decoded or rejected, or None to leave the file alone for now."""
        name, file = entry.name, f"new/{entry.name}"
        try:
            data = spool.read_capture(self._folder, name, bytes_max=self._settings.line_bytes_max)
        except FileNotFoundError:
            return None
        except LineRejected as rejected:
            if rejected.reason == "capture_unreadable":
                # No permission, no descriptors left, a disk that stutters: none of these is the capture's fault.
                return None
            return _Capture(name, b"", None, Reject(file, 0, None, rejected.reason, rejected.detail, entry.size))
        if not data.endswith(b"\n"):
            age_s = self._clock.now_us() / US_PER_S - entry.mtime_ns / 1e9
            if age_s < self._settings.incomplete_after_s:
                return None
            return _Capture(name, data, None, Reject(file, 0, data, "incomplete", "no final newline"))
        try:
            line = parse_line(data)
            event = decode_line(line, spool.event_time_us(line.s, entry.mtime_ns), self._repositories)
        except LineRejected as rejected:
            return _Capture(name, data, None, Reject(file, 0, data, rejected.reason, rejected.detail))
        return _Capture(name, data, Identified(capture_id(line.s or 0, name, data, self._key), event), None)

    def _take_shared(self, path: Path) -> Ticked:
        """Read one growing file from its checkpoint, a bounded number of chunks."""
        key = str(path)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            # Gone, or no permission, or no file descriptors left: the checkpoint stays, the next rescan tries again.
            return Ticked(0, 0, 0, more=False)
        try:
            found = os.fstat(handle)
            seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if not stat.S_ISREG(found.st_mode) or self._unchanged.get(key) == seen:
                return Ticked(0, 0, 0, more=False)
            done = self._read_chunks(handle, key, found)
            if not done.more:
                self._unchanged[key] = seen
            return done
        finally:
            os.close(handle)

    def _read_chunks(self, handle: int, key: str, found: os.stat_result) -> Ticked:
        checkpoint = self._checkpoints.get(key)
        if checkpoint is None or not _trusted(handle, checkpoint, found):
            checkpoint = Checkpoint(key, SHARED_FORM, found.st_dev, found.st_ino, 0, b"", 0, b"", 0, 0, b"")
        reader = _SharedReader(handle, checkpoint, self._settings.line_bytes_max)
        done = Ticked(0, 0, 0, more=False)
        with _without_gc():
            for chunks, chunk in enumerate(reader.chunks()):
                taken = self._take_chunk(reader, chunk, key)
                done = _sum(done, Ticked(taken.added, taken.known + taken.twins, taken.rejected, more=False))
                if chunks + 1 == CHUNKS_PER_TICK:
                    return done._replace(more=True)
        return done

    def _take_chunk(self, reader: _SharedReader, chunk: bytes | Reject, key: str) -> Taken:
        items: list[Identified] = []
        rejects: list[Reject] = []
        occurrences = Occurrences(reader.checkpoint.occurrences)
        if isinstance(chunk, Reject):
            rejects.append(chunk)
        else:
            self._decode_lines(chunk, reader.checkpoint.offset, key, occurrences, items, rejects)
        after = reader.after(chunk, occurrences)
        try:
            taken = self._sink.take(items, rejects=rejects, checkpoint=after)
        except _REFUSALS:
            taken = self._take_one_by_one(items, rejects, after)
        reader.checkpoint = self._checkpoints[key] = after
        return taken

    def _take_one_by_one(self, items: list[Identified], rejects: list[Reject], after: Checkpoint) -> Taken:
        """Insert a chunk that the database refused event by event, and move on only when every one is settled."""
        total = Taken(0, 0, 0, 0)
        for item in items:
            try:
                taken = self._sink.take([item])
            except _REFUSALS as error:
                # The bytes are still in the file that others own; the summary names the event.
                refused = Reject(f"event:{item.id.hex()}", 0, None, "store_refused", type(error).__name__)
                taken = self._sink.take([], rejects=[refused])
            total = _plus(total, taken)
        return _plus(total, self._sink.take([], rejects=rejects, checkpoint=after))

    def _decode_lines(
        self,
        chunk: bytes,
        offset: int,
        key: str,
        occurrences: Occurrences,
        items: list[Identified],
        rejects: list[Reject],
    ) -> None:
        """Decode whole lines; what cannot be decoded is rejected with its place, and the rest goes on."""
        now_us = self._clock.now_us()
        repositories, name = self._repositories, Path(key).name
        count = occurrences.next
        append = items.append
        for raw in chunk.split(b"\n"):
            if raw and not raw.isspace():
                try:
                    line = parse_line(raw)
                    at_us = stamp_us(line)
                    e = decode_line(line, now_us if at_us is None else at_us, repositories)
                except LineRejected as rejected:
                    rejects.append(Reject(name, offset, raw, rejected.reason, rejected.detail))
                else:
                    stamp = "" if at_us is None else str(at_us)
                    fact = line_fact(SHARED_FORM, stamp, line.id, e.session, e.kind, e.tool, e.outcome, e.duration_ms)
                    append(Identified(line_id(fact, 0 if at_us is None else at_us // 1000, count(fact)), e))
            offset += len(raw) + 1


class _SharedReader:
    """Cuts one open file into chunks of whole lines, never holding more than a chunk or one line."""

    def __init__(self, handle: int, checkpoint: Checkpoint, line_bytes_max: int) -> None:
        self._handle = handle
        self._line_bytes_max = line_bytes_max
        self._skipped = 0
        self.checkpoint = checkpoint

    def chunks(self) -> Iterator[bytes | Reject]:
        """Yield whole lines (with their newlines) from the checkpoint on; an over-long line as a Reject."""
        size = CHUNK_BYTES
        while True:
            data = os.pread(self._handle, size, self.checkpoint.offset)
            end = data.rfind(b"\n") + 1
            if end:
                size = CHUNK_BYTES
                yield data[:end]
            elif len(data) < size:
                # The line is not finished: it stays in the file until its newline comes.
                return
            elif size <= self._line_bytes_max:
                size *= 4
            else:
                length = self._length_of_line()
                if length is None:
                    return
                self._skipped = length
                yield Reject(Path(self.checkpoint.path).name, self.checkpoint.offset, None, "too_long", "", length)

    def after(self, chunk: bytes | Reject, occurrences: Occurrences) -> Checkpoint:
        """Return the checkpoint behind a chunk that `chunks` yielded."""
        before = self.checkpoint
        length, lines = (self._skipped, 1) if isinstance(chunk, Reject) else (len(chunk), chunk.count(b"\n"))
        offset = before.offset + length
        head = os.pread(self._handle, min(offset, HEAD_BYTES), 0)
        mark = os.pread(self._handle, min(offset, MARK_BYTES), max(offset - MARK_BYTES, 0))
        return before._replace(
            head_len=len(head), head_hash=_hash(head), mark_len=len(mark), mark_hash=_hash(mark),
            offset=offset, lines=before.lines + lines, occurrences=occurrences.pack(),
        )  # fmt: skip

    def _length_of_line(self) -> int | None:
        """Return the over-long line's length with its newline, or None while it is not finished. Memory stays flat."""
        offset = self.checkpoint.offset
        while data := os.pread(self._handle, SKIP_STEP_BYTES, offset):
            end = data.find(b"\n")
            if end >= 0:
                return offset + end + 1 - self.checkpoint.offset
            offset += len(data)
        return None


class Watcher:
    """Wakes the tail: at once by the platform's file events, and by a slow rescan in case one was missed."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings

    async def wakes(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Yield once for every reason to look, until `stop` is set."""
        yield
        async for _ in watchfiles.awatch(
            self._folder,
            self._folder / "new",
            watch_filter=None,
            debounce=self._settings.watch_step_ms,
            step=self._settings.watch_step_ms,
            rust_timeout=int(self._settings.rescan_s * 1000),
            yield_on_timeout=True,
            recursive=False,
            stop_event=stop,
        ):
            yield


def _shared_files(folder: Path) -> list[Path]:
    """Return the shared files that lie directly in the spool, by name."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name for entry in entries if entry.name.endswith(SUFFIX) and not entry.name.startswith(".")
            )
    except FileNotFoundError:
        return []
    return [folder / name for name in names]


def _trusted(handle: int, checkpoint: Checkpoint, found: os.stat_result) -> bool:
    """Return whether the open file is the one the checkpoint was made for, with nothing before the offset changed."""
    if (checkpoint.dev, checkpoint.ino) != (found.st_dev, found.st_ino) or found.st_size < checkpoint.offset:
        return False
    head = os.pread(handle, checkpoint.head_len, 0)
    mark = os.pread(handle, checkpoint.mark_len, checkpoint.offset - checkpoint.mark_len)
    return _hash(head) == checkpoint.head_hash and _hash(mark) == checkpoint.mark_hash


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _plus(a: Taken, b: Taken) -> Taken:
    return Taken(a.added + b.added, a.known + b.known, a.twins + b.twins, a.rejected + b.rejected)


def _sum(a: Ticked, b: Ticked) -> Ticked:
    return Ticked(a.added + b.added, a.known + b.known, a.rejected + b.rejected, a.more or b.more)


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Hold the cycle collector off while a chunk is taken in: thousands of live tuples and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
