"""Says when to look: at once by the platform's file events, and by a slow rescan that is the truth.

An event only ever means "look now": what was missed (a full event queue, a file system without events, a watcher
that failed, a folder that was replaced) is found by the next rescan, which looks at everything. Where events cannot
be had, folders are polled. The watcher never ends by itself: a tail that waits for a dead one would be dead too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import structlog

from metricsd import inotify, spool
from metricsd.config import Tail as Settings
from metricsd.errors import MetricsdError
from metricsd.growing import folders_of, place_of

POLL_S = 0.25
START_LOOK_S = 0.1
"""The first look after a watch has begun: what came while it was being set up made no event."""
RETRY_EVENTS_S = 60.0
MOUNTS = Path("/proc/self/mountinfo")
REMOTE = frozenset(
    {"9p", "afs", "ceph", "cifs", "drvfs", "fuse", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "prl_fs"}
    | {"smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"}
)
"""File systems on which others may write without an event here. Those named `fuse.*` count as well."""

log = structlog.get_logger("tail")

_Watched = tuple[tuple[str, int, int], ...]
_Events = Callable[[list[str], Settings, asyncio.Event], AsyncGenerator[None, None]]


class _Ending(asyncio.Event):
    """Ends one watch, when the daemon stops or by itself: watchfiles sets the event that it is given when it is closed."""

    def __init__(self, stop: asyncio.Event) -> None:
        super().__init__()
        self._stop = stop

    def is_set(self) -> bool:
        """Return whether this watch, or the daemon, is at its end."""
        return super().is_set() or self._stop.is_set()


class Watcher:
    """Wakes the tail of one home."""

    def __init__(self, folder: Path, settings: Settings, events: _Events | None = None) -> None:
        """`events` is how the system tells changes; None takes the way of this platform."""
        self._folder = folder
        self._settings = settings
        self._failed = False
        self._events = events or (by_inotify if sys.platform == "linux" else by_watchfiles)

    async def wakes(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Yield once for every reason to look, until `stop` is set."""
        while not stop.is_set():
            self._restore_spool()
            yield
            watched = self._watched()
            if self._must_poll(watched):
                await _pause(stop, min(POLL_S, self._settings.rescan_s))
                continue
            try:
                folders = [path for path, _, _ in watched]
                async with contextlib.aclosing(self._events(folders, self._settings, stop)) as events:
                    async for _ in events:
                        yield
                        if stop.is_set() or self._is_stale(watched):
                            # A folder appeared, went or was replaced: watch what is there now.
                            break
                self._failed = False
                continue
            except OSError as error:
                # A folder that went away just now is no failure of the watcher's.
                if not self._is_stale(watched) and not self._failed:
                    log.warning("watch.failed", reason=str(error), instead="polling")
                    self._failed = True
            retry_at = asyncio.get_running_loop().time() + RETRY_EVENTS_S
            while not stop.is_set() and asyncio.get_running_loop().time() < retry_at:
                await _pause(stop, min(POLL_S, self._settings.rescan_s))
                yield
                if self._is_stale(watched):
                    break

    def _is_stale(self, watched: _Watched) -> bool:
        """Return whether there are other folders now than those; the spool is made again first."""
        self._restore_spool()
        return self._watched() != watched

    def _watched(self) -> _Watched:
        """Return the folders that exist and can be watched, each with its device and inode."""
        places = [str(self._folder), str(self._folder / "new"), *map(place_of, self._settings.sources)]
        places += [place for place in folders_of(map(place_of, self._settings.older_hooks)) if os.path.isdir(place)]  # noqa: PTH112
        found: dict[str, tuple[str, int, int]] = {}
        for place in places:
            folder = place if os.path.isdir(place) else os.path.dirname(place)  # noqa: PTH112, PTH120
            with contextlib.suppress(OSError):
                status = os.stat(folder)  # noqa: PTH116
                if os.access(folder, os.R_OK | os.X_OK):
                    found[folder] = (folder, status.st_dev, status.st_ino)
        return tuple(found.values())

    def _must_poll(self, watched: _Watched) -> bool:
        match self._settings.watch:
            case "poll":
                return True
            case "events":
                return not watched
            case _:
                return not watched or any(is_remote(filesystem_of(path)) for path, _, _ in watched)

    def _restore_spool(self) -> None:
        """Make the spool again if somebody removed it: hooks write nowhere else."""
        if not (self._folder / "new").is_dir():
            with contextlib.suppress(MetricsdError):
                spool.ensure_spool(self._folder)


async def by_inotify(folders: list[str], settings: Settings, stop: asyncio.Event) -> AsyncGenerator[None, None]:
    """Yield for file events and rescans, and once when the watch has begun. Ends with its consumer."""
    del stop
    looks = inotify.reasons_to_look(folders, collect_s=settings.watch_step_ms / 1000, rescan_s=settings.rescan_s)
    async with contextlib.aclosing(looks):
        async for _ in looks:
            yield


async def by_watchfiles(folders: list[str], settings: Settings, stop: asyncio.Event) -> AsyncGenerator[None, None]:
    """Yield for file events and rescans, and once soon after the watch has begun: where there is no inotify."""
    import watchfiles

    changes = watchfiles.awatch(
        *folders,
        watch_filter=None,
        debounce=settings.watch_step_ms,
        step=settings.watch_step_ms,
        rust_timeout=int(settings.rescan_s * 1000),
        yield_on_timeout=True,
        recursive=False,
        stop_event=_Ending(stop),
    )
    async with contextlib.aclosing(changes):
        first = asyncio.ensure_future(anext(changes, None))
        try:
            await asyncio.wait({first}, timeout=START_LOOK_S)
            if not first.done():
                yield
            if await first is None:
                return
        finally:
            if not first.done():
                first.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await first
        yield
        async for _ in changes:
            yield


def is_remote(kind: str) -> bool:
    """Return whether a file system of this kind may change without an event here."""
    return kind in REMOTE or kind.startswith("fuse.")


def filesystem_of(path: str, mounts: Path = MOUNTS) -> str:
    """Return the kind of the file system that holds a path, empty where that cannot be told."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # Of two mounts on one point the later one covers the other.
        if inside and len(point) >= best:
            best, kind = len(point), after.split(" ")[0]
    return kind


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
