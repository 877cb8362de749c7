"""Follows every shared file, through rotation, truncation, replacement and loss of permission.

Offset and rows commit together, and on any doubt a file is read again from its start: event ids make that harmless,
whereas a skipped byte is lost. A file that lost its name is followed for a while wherever it is. Files that others
write are never written, renamed, truncated or deleted; handles are bounded in number, and a failing `open` or
`stat` is never taken for a deletion.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from metricsd import collector, growing
from metricsd.clock import Clock
from metricsd.config import Tail as Settings
from metricsd.growing import Found, Piece, Reader
from metricsd.ids import Occurrences
from metricsd.lines import Chunk, Form, Unit
from metricsd.sink import NOTHING, REFUSALS, Sink, Ticked, both, take_each, ticked
from metricsd.store.ingest import Taken
from metricsd.store.quarantine import BYTES_KEPT_MAX, Reject
from metricsd.store.sources import Checkpoint

CHUNKS_PER_TICK = 8
HANDLES_KEPT_MAX = 128
"""Files kept open because they were read last: what is written to one after it lost its name is not missed."""
ROTATED_MAX = 64
HANDLES_SHARE = 8
"""Of the process's descriptors at most one in so many is used for either."""
_SHORT = (errno.EMFILE, errno.ENFILE)
"""No descriptor is left, for the process or for the system."""
RECHECK_S = 1.0
"""A file's times have a grain of milliseconds; after this long without a change its content is compared once more."""


class _Seen(NamedTuple):
    """How a file looked when it had been read to its end; `sure` once its content was compared later."""

    stamp: tuple[int, ...]
    at: float
    sure: bool


@dataclass(slots=True)
class _Rotated:
    """A file that lost the name it was read under. Without a path its progress is not stored: nobody could find it."""

    name: str
    handle: int
    checkpoint: Checkpoint
    stored: bool
    size: int
    quiet_since: float


class Listing(NamedTuple):
    """The files to follow, and the folders that could be listed: only there does absence mean that a file is gone."""

    paths: list[str]
    folders: set[str]
    is_short: bool = False
    """No descriptor was left to list a folder with."""


class SharedFiles:
    """All shared files of one home. Belongs to the thread that writes the store."""

    def __init__(
        self,
        sink: Sink,
        places: Sequence[str],
        form: Form,
        settings: Settings,
        clock: Clock,
        checkpoints: Mapping[str, Checkpoint],
    ) -> None:
        """`places` are folders, whose `*.jsonl` are followed, and single files; of `checkpoints` the form's count."""
        self._sink = sink
        self._places = list(places)
        self._form = form
        self._settings = settings
        self._clock = clock
        self._checkpoints = {path: found for path, found in checkpoints.items() if found.form == form.name}
        self._by_inode = {(found.dev, found.ino): path for path, found in self._checkpoints.items()}
        self._handles: OrderedDict[str, int] = OrderedDict()
        self._seen: dict[str, _Seen] = {}
        self._rotated: list[_Rotated] = []
        self._settled: set[str] = set()
        """Paths with a checkpoint and without a file whose absence has been dealt with."""
        self._handles_max = max(
            1, min(HANDLES_KEPT_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // HANDLES_SHARE)
        )
        self._turn = ""
        self._chunks_left = 0

    def tick(self) -> Ticked:
        """Read what is new, a bounded number of chunks in all; files that are behind take turns."""
        self._chunks_left = CHUNKS_PER_TICK
        listing = list_shared(self._places)
        if listing.is_short:
            self._give_up_handles()
            listing = list_shared(self._places)
        self._follow_vanished(listing)
        done = NOTHING
        for path in _in_turn(listing.paths, self._turn):
            done = both(done, self._look(path))
            if self._chunks_left == 0:
                self._turn = path
                return done._replace(more=True)
        return both(done, self._drain_rotated())

    def close(self) -> None:
        """Let go of every file."""
        for handle in (*self._handles.values(), *(rotated.handle for rotated in self._rotated)):
            os.close(handle)
        self._handles.clear()
        self._rotated.clear()

    def _look(self, path: str) -> Ticked:
        """Read one file from its checkpoint, if it changed."""
        try:
            found = os.stat(path)  # noqa: PTH116
            seen, now = self._seen.get(path), self._clock.monotonic()
            unchanged = seen is not None and seen.stamp == growing.stamp_of(found)
            if seen is not None and unchanged and (seen.sure or now - seen.at < RECHECK_S):
                return NOTHING
            if not stat.S_ISREG(found.st_mode):
                return NOTHING
            handle, lost = self._open(path, found)
            found = os.fstat(handle)
            done, _ = self._read(handle, self._start_of(path, handle, found, lost))
        except OSError:
            # Gone, or no permission, or no descriptors left, or a disk that stutters: none of these is a deletion.
            # The checkpoint stays, and the next look tries again.
            return NOTHING
        if not done.more:
            self._seen[path] = _Seen(growing.stamp_of(found), now, sure=unchanged)
        return done

    def _open(self, path: str, found: os.stat_result) -> tuple[int, int | None]:
        """Return a handle of the file that has the name, and the kept handle of one that lost it."""
        kept = self._handles.get(path)
        if kept is not None:
            before = os.fstat(kept)
            if (before.st_dev, before.st_ino) == (found.st_dev, found.st_ino):
                self._handles.move_to_end(path)
                return kept, None
        while len(self._handles) >= self._handles_max and next(iter(self._handles)) != path:
            os.close(self._handles.popitem(last=False)[1])
        try:
            handle = growing.open_plain(path)
        except OSError as error:
            if error.errno not in _SHORT:
                raise
            self._give_up_handles(but=path)
            handle = growing.open_plain(path)
        self._handles[path] = handle
        self._handles.move_to_end(path)
        return handle, kept

    def _give_up_handles(self, *, but: str = "") -> None:
        """Close what is kept for rotations that may never come, and keep fewer from now on.

        With the last descriptor in one of them nothing could be listed any more, and no capture be read.
        """
        self._handles_max = max(1, min(self._handles_max, len(self._handles) // 2))
        for path in [path for path in self._handles if path != but]:
            os.close(self._handles.pop(path))

    def _start_of(self, path: str, handle: int, found: os.stat_result, lost: int | None) -> Checkpoint:
        """Return where to read on: behind what was read if that is sure, else at the start."""
        back, known = self._take_back(path, found), self._checkpoints.get(path)
        checkpoint = back or known
        if lost is None and checkpoint is not None and growing.is_trusted(handle, checkpoint, found):
            return checkpoint
        if lost is not None or known is not None:
            self._part(path, lost)
        start = (
            back if back is not None and growing.is_trusted(handle, back, found) else self._first(path, handle, found)
        )
        self._remember(start)
        return start

    def _first(self, path: str, handle: int, found: os.stat_result) -> Checkpoint:
        """Return where to begin: behind what was read of the same file under another name, else at the start."""
        other = self._checkpoints.get(self._by_inode.get((found.st_dev, found.st_ino), ""))
        if other is not None and growing.is_trusted(handle, other, found):
            return other._replace(path=path)
        return growing.fresh(path, found, self._form.name)

    def _take_back(self, path: str, found: os.stat_result) -> Checkpoint | None:
        """Return how far a file was read that was rotated away and has a followed name again."""
        for rotated in self._rotated:
            if growing.is_same_file(rotated.checkpoint, found):
                self._rotated.remove(rotated)
                os.close(rotated.handle)
                if rotated.stored:
                    self._forget(rotated.checkpoint.path)
                return rotated.checkpoint._replace(path=path)
        return None

    def _follow_vanished(self, listing: Listing) -> None:
        """Part from files whose names are gone, once each."""
        present = set(listing.paths)
        self._settled -= present
        for path in sorted((self._checkpoints.keys() | self._handles.keys()) - present - self._settled):
            if os.path.dirname(path) not in listing.folders:  # noqa: PTH120
                continue
            with contextlib.suppress(OSError):
                self._part(path, self._handles.pop(path, None))
                self._settled.add(path)
                self._seen.pop(path, None)

    def _part(self, path: str, handle: int | None) -> None:
        """Follow the file that was read under `path` to where it is now. Owns `handle`, if it was kept open."""
        old = self._checkpoints.get(path)
        if handle is None:
            if old is not None and (old.offset or growing.path_before(path) != path):
                self._follow(path, old, None)
            return
        found = os.fstat(handle)
        if old is not None and not growing.is_trusted(handle, old, found):
            # Truncated before it lost its name: a copy may have the old content, and the new one is all unread.
            self._follow(path, old, None)
            old = None
        self._follow(path, old or growing.fresh(path, found, self._form.name), handle)

    def _follow(self, path: str, old: Checkpoint, handle: int | None) -> None:
        """Find where a file lies that had been read up to `old`, and go on reading it there for a while."""
        forget = () if growing.follows(PurePath(path).name) else (path,)
        # Not by their names: rotation gives the name that a file had at the last look to the next one.
        followed = {(rotated.checkpoint.dev, rotated.checkpoint.ino) for rotated in self._rotated}
        moved = growing.find_moved(
            os.path.dirname(path),  # noqa: PTH120
            old,
            lambda place: place != path and place in self._checkpoints and growing.follows(PurePath(place).name),
            followed,
        )
        if not old.offset and handle is None:
            # Nothing of it was read before a kill, so its inode alone speaks for it, and its name has to as well.
            moved = [found for found in moved[:1] if growing.is_rotation(found, growing.path_before(path))]
        if not moved and forget and handle is None:
            self._forget(path)
        for number, found in enumerate(moved):
            if growing.follows(PurePath(found.path).name) or growing.inode_of(found.status) in followed:
                # It is read under that name by itself, and known by its inode; or it is followed already.
                continue
            with contextlib.suppress(OSError):
                if number == 0 and handle is not None:
                    opened, handle = handle, None
                else:
                    opened = growing.open_plain(found.path)
                self._rotate(path, found, old if number == 0 else None, opened, forget)
        if handle is not None:
            self._rotated.append(_Rotated(growing.name_of(path), handle, old, False, -1, self._clock.monotonic()))

    def _rotate(self, path: str, found: Found, old: Checkpoint | None, handle: int, forget: tuple[str, ...]) -> None:
        """Store where a rotated file is and how far it was read, before its name's next file is read."""
        status = os.fstat(handle)
        place = growing.rotated_place(growing.path_before(path), status)
        start = growing.fresh(place, status, self._form.name)
        if old is not None:
            start = old._replace(path=place, dev=status.st_dev, ino=status.st_ino)
        self._sink.take([], checkpoint=start, forget=[name for name in forget if name != place])
        self._remember(start)
        self._settled.add(place)
        self._rotated.append(_Rotated(growing.name_of(path), handle, start, True, -1, self._clock.monotonic()))

    def _drain_rotated(self) -> Ticked:
        """Read what is still written to files that lost their names, and let go of those that stay quiet."""
        done, kept = NOTHING, []
        for number, rotated in enumerate(self._rotated):
            drained = self._drain(rotated)
            is_quiet = self._clock.monotonic() - rotated.quiet_since >= self._settings.rotated_wait_s
            is_surplus = len(self._rotated) - number > min(ROTATED_MAX, self._handles_max)
            if drained.more or not (is_quiet or is_surplus):
                kept.append(rotated)
            else:
                drained = both(drained, self._let_go(rotated))
            done = both(done, drained)
        self._rotated = kept
        return done

    def _drain(self, rotated: _Rotated) -> Ticked:
        try:
            found = os.fstat(rotated.handle)
            if found.st_size == rotated.size or not growing.is_trusted(rotated.handle, rotated.checkpoint, found):
                return NOTHING
            done, rotated.checkpoint = self._read(rotated.handle, rotated.checkpoint, stored=rotated.stored)
        except OSError:
            return NOTHING
        if not done.more:
            rotated.size, rotated.quiet_since = found.st_size, self._clock.monotonic()
        return done

    def _let_go(self, rotated: _Rotated) -> Ticked:
        """Close a rotated file; a last line that never ended goes to quarantine."""
        rest = b""
        with contextlib.suppress(OSError):
            reader = Reader(rotated.handle, rotated.checkpoint, self._settings.line_bytes_max)
            rest = reader.rest(BYTES_KEPT_MAX)
        rejects = []
        if rest.strip(b"\0 \r"):
            kept = rest if self._form.keeps_bytes else None
            offset, size = rotated.checkpoint.offset, len(rest)
            rejects.append(Reject(rotated.name, offset, kept, "incomplete", "no final newline", size))
        taken = self._sink.take([], rejects=rejects)
        if rotated.stored:
            self._forget(rotated.checkpoint.path)
        os.close(rotated.handle)
        return ticked(taken)

    def _remember(self, checkpoint: Checkpoint) -> None:
        self._checkpoints[checkpoint.path] = checkpoint
        self._by_inode[(checkpoint.dev, checkpoint.ino)] = checkpoint.path

    def _forget(self, path: str) -> None:
        self._sink.take([], forget=[path])
        known = self._checkpoints.pop(path, None)
        self._settled.discard(path)
        if known is not None and self._by_inode.get((known.dev, known.ino)) == path:
            del self._by_inode[(known.dev, known.ino)]

    def _read(self, handle: int, checkpoint: Checkpoint, *, stored: bool = True) -> tuple[Ticked, Checkpoint]:
        """Take in what lies behind the checkpoint, a bounded number of chunks; return how far that went."""
        reader = Reader(handle, checkpoint, self._settings.line_bytes_max)
        done = NOTHING
        with collector.held_off():
            for piece in reader.pieces():
                done = both(done, ticked(self._take_piece(reader, piece, stored)))
                self._chunks_left = max(self._chunks_left - 1, 0)
                if self._chunks_left == 0:
                    return done._replace(more=True), reader.checkpoint
        return done, reader.checkpoint

    def _take_piece(self, reader: Reader, piece: Piece, stored: bool) -> Taken:
        unit = Unit([], [], [] if piece.reject is None else [piece.reject])
        before = reader.checkpoint
        occurrences = Occurrences(before.occurrences)
        if piece.data:
            self._form.decode(Chunk(growing.name_of(before.path), before.offset, piece.data), occurrences, unit)
        after = reader.after(piece, occurrences)
        checkpoint = after if stored else None
        try:
            taken = self._sink.take(unit.items, rejects=unit.rejects, beside=unit.beside, checkpoint=checkpoint)
        except REFUSALS:
            taken = take_each(
                self._sink, unit.items, unit.rejects, unit.beside, checkpoint, name=PurePath(before.path).name
            )
        reader.checkpoint = after
        if stored:
            self._remember(after)
        return taken


def list_shared(places: list[str]) -> Listing:
    """Return the files to follow: the `*.jsonl` directly in each folder, and each place that is a file itself."""
    paths: dict[str, None] = {}
    folders: set[str] = set()
    is_short = False
    for place in places:
        try:
            with os.scandir(place) as entries:
                names = sorted(entry.name for entry in entries if growing.follows(entry.name))
            paths.update(dict.fromkeys(f"{place}/{name}" for name in names))
            folders.add(place)
        except NotADirectoryError:
            paths[place] = None
            folders.add(os.path.dirname(place))  # noqa: PTH120
        except FileNotFoundError:
            # A single file between two rotations, if its folder is there.
            if os.path.isdir(parent := os.path.dirname(place)):  # noqa: PTH112, PTH120
                folders.add(parent)
        except OSError as error:
            # No permission, or no descriptors left: what lies there is not gone, it cannot be seen now.
            is_short = is_short or error.errno in _SHORT
    return Listing(list(paths), folders, is_short)


def _in_turn(paths: list[str], last: str) -> list[str]:
    """Return the paths, beginning behind the one that used up the last round."""
    if last not in paths:
        return paths
    start = paths.index(last) + 1
    return paths[start:] + paths[:start]
