"""Reads what hooks and other programs wrote and hands it to the store, exactly once.

Captures (one file each, consumed once) are deleted only after a commit that is on disk; shared files (others append
to them) are never touched, see shared.py. One `tick()` does a bounded amount of work; `watch.Watcher` says when to
tick. A capture that cannot be read now, for lack of permission or of descriptors, waits: it is neither lost nor
blamed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from metricsd import spool
from metricsd.backlog import Backlog, Progress
from metricsd.clock import Clock
from metricsd.config import Tail as Settings
from metricsd.crash import crash_point
from metricsd.decode import decode_line, parse_line
from metricsd.decode.repository import Repositories
from metricsd.errors import LineRejected, SpoolUnavailable
from metricsd.growing import place_of
from metricsd.ids import capture_id
from metricsd.lines import SharedLines
from metricsd.older.folders import OlderFolders
from metricsd.shared import SharedFiles
from metricsd.sink import NOTHING, REFUSALS, Sink, Ticked, both, plus, ticked
from metricsd.store.events import Identified
from metricsd.store.ingest import Taken
from metricsd.store.quarantine import Reject
from metricsd.store.sources import Checkpoint

CAPTURES_PER_TICK = 500
CAPTURE_BYTES_PER_TICK = 8 * 1024 * 1024
UNFINISHED_MAX = 10_000
"""Names of unfinished captures that are remembered before those that are gone are forgotten."""


class _Capture(NamedTuple):
    """One capture that was read: its bytes, and either its event or its rejection."""

    name: str
    data: bytes
    item: Identified | None
    reject: Reject | None


class _Unfinished(NamedTuple):
    """A capture without its newline: its size, and since when (monotonic) it has been that long."""

    size: int
    since: float


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
        self._backlog = Backlog(folder, clock)
        self._undeletable: SpoolUnavailable | None = None
        self._unfinished: dict[str, _Unfinished] = {}
        places = [str(folder), *map(place_of, settings.sources)]
        lines = SharedLines(self._repositories, clock)
        self._shared = SharedFiles(sink, places, lines, settings, clock, checkpoints)
        self._older = OlderFolders(sink, list(map(place_of, settings.older_hooks)), settings, clock, checkpoints)

    @property
    def progress(self) -> Progress:
        """How many captures are left, and how fast they are taken in. May be read by any thread."""
        return self._backlog.progress

    def tick(self) -> Ticked:
        """Take in one bounded round: captures first, then shared files. Raises StoreError, and nothing is lost then."""
        self._undeletable = None
        done = both(both(self._take_captures(), self._shared.tick()), self._older.tick())
        if self._undeletable is not None:
            raise self._undeletable
        return done

    def close(self) -> None:
        """Let go of the files that are kept open."""
        self._shared.close()
        self._older.close()

    def _take_captures(self) -> Ticked:
        captures: list[_Capture] = []
        size = 0
        for name in self._backlog.next(CAPTURES_PER_TICK):
            # What lies beyond the bytes of a round is found again when the folder is next listed.
            capture = self._read_capture(name) if size < CAPTURE_BYTES_PER_TICK else None
            if capture is None:
                self._backlog.pass_over(name)
            else:
                captures.append(capture)
                size += len(capture.data)
        more = len(self._backlog) > 0 or size >= CAPTURE_BYTES_PER_TICK
        if not more:
            self._backlog.end_round()
        if not captures:
            return NOTHING._replace(more=more)
        taken = self._take_split(captures)
        crash_point("before_unlink")
        for number, capture in enumerate(captures):
            if number == len(captures) // 2:
                crash_point("half_of_unlinks")
            # Only now, after a commit that is on disk, may the capture go.
            self._delete(capture.name)
        self._backlog.note_taken(len(captures))
        return ticked(taken, more=more)

    def _delete(self, name: str) -> None:
        """Delete a stored capture. One that cannot be deleted holds up nothing; it is known when it is read again."""
        try:
            os.unlink(f"{self._new}/{name}")  # noqa: PTH108 - a path object costs as much as the call itself
        except FileNotFoundError:
            return
        except OSError as error:
            self._undeletable = SpoolUnavailable(
                f"{self._new / name}: stored, but cannot be deleted ({error.strerror}): check the folder's permissions"
            )

    def _take_split(self, captures: list[_Capture]) -> Taken:
        """Take captures in; if one of them breaks the statement, find it and quarantine it alone."""
        items = [capture.item for capture in captures if capture.item is not None]
        rejects = [capture.reject for capture in captures if capture.reject is not None]
        try:
            return self._sink.take(items, rejects=rejects, full=True)
        except REFUSALS as error:
            if len(captures) == 1:
                refused = Reject(f"new/{captures[0].name}", 0, captures[0].data, "store_refused", type(error).__name__)
                return self._sink.take([], rejects=[refused], full=True)
            half = len(captures) // 2
            return plus(self._take_split(captures[:half]), self._take_split(captures[half:]))

    def _read_capture(self, name: str) -> _Capture | None:
        """Return the capture, decoded or rejected, or None to leave the file alone for now."""
        file = f"new/{name}"
        try:
            data, size, mtime_ns = spool.load_capture(self._folder, name, bytes_max=self._settings.line_bytes_max)
        except FileNotFoundError:
            return None
        except LineRejected as rejected:
            if rejected.reason == "capture_unreadable":
                # No permission, no descriptors left, a disk that stutters: none of these is the capture's fault.
                return None
            size = spool.size_of(self._folder, name)
            return _Capture(name, b"", None, Reject(file, 0, None, rejected.reason, rejected.detail, size))
        if not data.endswith(b"\n"):
            if not self._is_given_up(name, size):
                return None
            return _Capture(name, data, None, Reject(file, 0, data, "incomplete", "no final newline"))
        try:
            line = parse_line(data)
            if spool.is_probe(line.app, line.event):
                return _Capture(name, data, None, None)
            event = decode_line(line, spool.event_time_us(line.s, mtime_ns), self._repositories)
        except LineRejected as rejected:
            return _Capture(name, data, None, Reject(file, 0, data, rejected.reason, rejected.detail))
        return _Capture(name, data, Identified(capture_id(line.s or 0, name, data, self._key), event), None)

    def _is_given_up(self, name: str, size: int) -> bool:
        """Return whether an unfinished capture has not grown for so long that its hook must be dead.

        Measured by this process's own clock: a wall clock that somebody set would give up on a hook at work.
        """
        now, known = self._clock.monotonic(), self._unfinished.get(name)
        if known is None or known.size != size:
            if len(self._unfinished) >= UNFINISHED_MAX:
                self._unfinished = {n: u for n, u in self._unfinished.items() if (self._new / n).exists()}
            self._unfinished[name] = _Unfinished(size, now)
            return False
        if now - known.since < self._settings.incomplete_after_s:
            return False
        del self._unfinished[name]
        return True
