"""Says that something happened in a folder (Linux, inotify), through the event loop: nothing runs until it does.

A thread that asks every few milliseconds, as portable watchers have, is most of what an idle daemon costs. What the
events say is not read: any of them is a reason to look, none is to be trusted, and a queue that overflowed is one event
like every other. Deletions are no reason to look: the daemon's own are most of them, and a rescan finds the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncGenerator, Iterable
from types import TracebackType

MODIFIED, ATTRIBUTES, WRITTEN = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATED = 0x40, 0x80, 0x100
FOLDER_DELETED, FOLDER_MOVED, FOLDERS_ALONE = 0x400, 0x800, 0x01000000
"""IN_* of linux/inotify.h."""
EVENTS = MODIFIED | ATTRIBUTES | WRITTEN | MOVED_FROM | MOVED_TO | CREATED | FOLDER_DELETED | FOLDER_MOVED
_READ_BYTES = 65536
_READS_MAX = 64
"""The kernel's queue holds 16,384 events unless somebody made it longer; what is left over is one more look."""


class Inotify:
    """Events of some folders, not of what lies below them. Use as a context manager."""

    def __init__(self, folders: Iterable[str]) -> None:
        """Watch; raise OSError when a folder, or inotify itself, cannot be had."""
        library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = _checked(library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), None)
        try:
            for folder in folders:
                _checked(
                    library.inotify_add_watch(
                        self._descriptor, os.fsencode(folder), ctypes.c_uint32(EVENTS | FOLDERS_ALONE)
                    ),
                    folder,
                )
        except OSError:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Inotify:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    async def heard(self, within_s: float) -> bool:
        """Return whether there are events, at once when there are, else after so long."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._descriptor, _settle, heard)
        try:
            await asyncio.wait({heard}, timeout=within_s)
            return heard.done()
        finally:
            loop.remove_reader(self._descriptor)

    def forget(self) -> None:
        """Drop the events that came until now."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_READS_MAX):
                os.read(self._descriptor, _READ_BYTES)


async def reasons_to_look(folders: Iterable[str], *, collect_s: float, rescan_s: float) -> AsyncGenerator[None, None]:
    """Yield at once, `collect_s` after an event, and when nothing was heard for `rescan_s`.

    What happens after a yield is heard, however long the caller takes. Raises OSError as Inotify does.
    """
    with Inotify(folders) as events:
        while True:
            events.forget()
            yield
            if await events.heard(rescan_s):
                await asyncio.sleep(collect_s)


def _settle(heard: asyncio.Future[None]) -> None:
    if not heard.done():
        heard.set_result(None)


def _checked(result: int, path: str | None) -> int:
    """Return what a call of the library returned; raise OSError for its -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
