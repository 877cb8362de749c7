"""The small documents of the older hooks: a few for each session, rewritten in place or appended to once.

Every document is read when it is new or has changed, as a whole, and everything again after a restart: ids make that
harmless. A document that cannot be read may be half written, so it is looked at again until it has not changed for
long. Nothing is ever written to these folders, and a folder of any size costs a bounded share of the time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from metricsd import growing
from metricsd.clock import Clock
from metricsd.config import Tail as Settings
from metricsd.decode.older_hooks import read_document, read_line
from metricsd.errors import LineRejected
from metricsd.ids import Occurrences
from metricsd.lines import Unit
from metricsd.older.lines import add
from metricsd.older.sessions import OlderSessions
from metricsd.sink import NOTHING, REFUSALS, Sink, Ticked, both, ticked
from metricsd.store.quarantine import Reject

DOCUMENT_BYTES_MAX = 1024 * 1024
PER_TICK = 200
NAMES_MAX = 200_000
"""Documents that are followed in all; the newest of a folder that holds more."""
LIST_SHARE = 50
"""Listing takes at most one part in so many of the time."""

_Stamp = tuple[int, ...]


class _Bad(NamedTuple):
    """A document that could not be read: how it looked, and since when (monotonic) it has looked like that."""

    stamp: _Stamp
    since: float


class Documents:
    """All documents of some folders. Belongs to the thread that writes the store."""

    def __init__(
        self, sink: Sink, roots: Sequence[str], sessions: OlderSessions, settings: Settings, clock: Clock
    ) -> None:
        self._sink = sink
        self._folders = [f"{root}/{name}" for root in roots for name in growing.OLDER_FOLDERS]
        self._sessions = sessions
        self._settings = settings
        self._clock = clock
        self._seen: dict[str, _Stamp] = {}
        self._bad: dict[str, _Bad] = {}
        self._waiting: list[str] = []
        self._folder_stamps: dict[str, int] = {}
        self._listed_at: float | None = None
        self._list_cost_s = 0.0

    def tick(self) -> Ticked:
        """Read what is new or has changed, a bounded number of documents. Raises StoreError, and nothing is lost."""
        if not self._waiting and self._is_due():
            self._list()
        batch, self._waiting = self._waiting[:PER_TICK], self._waiting[PER_TICK:]
        if not batch:
            return NOTHING
        unit = Unit([], [], [])
        stamps: dict[str, _Stamp] = {}
        for path in batch:
            stamp = self._read(path, unit)
            if stamp is not None:
                stamps[path] = stamp
        try:
            done = self._take(unit)
        except BaseException:
            self._waiting = [*batch, *self._waiting]
            raise
        self._seen.update(stamps)
        return done._replace(more=bool(self._waiting))

    def _take(self, unit: Unit) -> Ticked:
        try:
            return ticked(self._sink.take(unit.items, rejects=unit.rejects, beside=unit.beside))
        except REFUSALS:
            return self._take_one_by_one(unit)

    def _take_one_by_one(self, unit: Unit) -> Ticked:
        """Store what the database does not refuse."""
        done = ticked(self._sink.take([], rejects=unit.rejects))
        for item in unit.items:
            try:
                done = both(done, ticked(self._sink.take([item])))
            except REFUSALS as error:
                refused = Reject(f"event:{item.id.hex()}", 0, None, "store_refused", type(error).__name__)
                done = both(done, ticked(self._sink.take([], rejects=[refused])))
        return both(done, ticked(self._sink.take([], beside=unit.beside)))

    def _is_due(self) -> bool:
        """Return whether to list: a folder's entries changed, or a document may have grown."""
        if self._listed_at is None or self._bad:
            return True
        waited_s = self._clock.monotonic() - self._listed_at
        pause_s = self._list_cost_s * LIST_SHARE
        changed = any(_changed_ns(folder) != self._folder_stamps.get(folder, 0) for folder in self._folders)
        return waited_s >= (pause_s if changed else max(pause_s, self._settings.rescan_s))

    def _list(self) -> None:
        """Find documents that look different from when they were read; a folder that cannot be listed waits."""
        began = self._clock.monotonic()
        present: set[str] = set()
        for folder in self._folders:
            self._folder_stamps[folder] = _changed_ns(folder)
            for path, stamp in _documents(folder):
                present.add(path)
                bad = self._bad.get(path)
                given_up = bad is not None and bad.stamp == stamp and not self._is_given_up(bad)
                if self._seen.get(path) != stamp and not given_up:
                    self._waiting.append(path)
        for gone in self._bad.keys() - present:
            del self._bad[gone]
        # First a session's first record, which alone has its true start, then its summary.
        self._waiting.sort(key=lambda path: (path.endswith("l"), path))
        self._listed_at = self._clock.monotonic()
        self._list_cost_s = self._listed_at - began

    def _is_given_up(self, bad: _Bad) -> bool:
        return self._clock.monotonic() - bad.since >= self._settings.incomplete_after_s

    def _read(self, path: str, unit: Unit) -> _Stamp | None:
        """Add what a document says; return how it looked, or None to look at it again."""
        try:
            handle = growing.open_plain(path)
        except OSError:
            # Gone, or no permission, or no descriptors left: the next listing finds it again if it is there.
            return None
        try:
            found = os.fstat(handle)
            stamp = growing.stamp_of(found)
            if found.st_size > DOCUMENT_BYTES_MAX:
                unit.rejects.append(Reject(_name(path), 0, None, "too_long", "", found.st_size))
                return stamp
            data = os.pread(handle, DOCUMENT_BYTES_MAX + 1, 0)
        except OSError:
            return None
        finally:
            os.close(handle)
        part = Unit([], [], [])
        whole = self._decode_lines(path, data, part) if path.endswith("l") else self._decode(path, data, part)
        if not whole and not self._note_bad(path, stamp):
            part.rejects.clear()
            stamp = ()
        unit.items.extend(part.items)
        unit.beside.extend(part.beside)
        unit.rejects.extend(part.rejects)
        return stamp or None

    def _note_bad(self, path: str, stamp: _Stamp) -> bool:
        """Return whether a document that cannot be read has been like this for so long that it stays so."""
        bad = self._bad.get(path)
        if bad is not None and bad.stamp == stamp and self._is_given_up(bad):
            del self._bad[path]
            return True
        if bad is None or bad.stamp != stamp:
            self._bad[path] = _Bad(stamp, self._clock.monotonic())
        return False

    def _decode(self, path: str, data: bytes, unit: Unit) -> bool:
        try:
            add(unit, read_document(data), Occurrences(), self._sessions)
        except LineRejected as rejected:
            unit.rejects.append(Reject(_name(path), 0, data, rejected.reason, rejected.detail))
            return False
        self._bad.pop(path, None)
        return True

    def _decode_lines(self, path: str, data: bytes, unit: Unit) -> bool:
        """Read a session's two lines; a bad line with its end is bad for good, one without may still grow."""
        *lines, rest = data.split(b"\n")
        occurrences, offset = Occurrences(), 0
        for raw in lines:
            if raw.strip():
                try:
                    found = read_line(raw)
                    if found is not None:
                        add(unit, found, occurrences, self._sessions)
                except LineRejected as rejected:
                    unit.rejects.append(Reject(_name(path), offset, raw, rejected.reason, rejected.detail))
            offset += len(raw) + 1
        if rest.strip():
            unit.rejects.append(Reject(_name(path), offset, rest, "incomplete", "no final newline"))
            return False
        return True


def _documents(folder: str) -> list[tuple[str, _Stamp]]:
    """Return the documents of a folder and how they look; nothing when it cannot be listed now."""
    found: list[tuple[str, _Stamp]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((".json", ".jsonl")) and not entry.name.startswith("."):
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        found.append((entry.path, growing.stamp_of(status)))
    except OSError:
        return found
    if len(found) > NAMES_MAX:
        found.sort(key=lambda one: one[1][3])
        del found[:-NAMES_MAX]
    return found


def _changed_ns(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def _name(path: str) -> str:
    return "/".join(path.split("/")[-2:])
