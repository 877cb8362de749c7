"""Calls that came while the store could not be used: a file of their own, taken in as soon as it can.

A call is answered only when its line is on the disk. Its line has the event and its id, so taking it in twice, or
after a retry of its client, changes nothing. What is taken in is first given another name, so that a call that comes
meanwhile is never forgotten with it. A torn last line was never acknowledged and is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from metricsd.errors import StoreUnavailable
from metricsd.ids import EVENT_ID_BYTES, EventId
from metricsd.model import Event

BYTES_MAX = 64 * 1024 * 1024
"""Beyond, calls are refused until the store is back: half a million of them."""


class Waiting(msgspec.Struct, frozen=True):
    """A call that waits: its event, and the document to keep of it under its id."""

    id: str
    event: Event
    document: dict[str, Any] | None = None

    @property
    def event_id(self) -> EventId:
        """Return the event's id; raise ValueError for what is none."""
        found = bytes.fromhex(self.id)
        if len(found) != EVENT_ID_BYTES:
            raise ValueError("not an event id")
        return EventId(found)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Waiting).decode


class Journal:
    """The file of one home. Its calls may come from any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taking = path.with_name(path.name + ".taking")

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._taking.exists() and not self._path.exists()

    def append(self, calls: Sequence[Waiting]) -> None:
        """Write calls, on disk when this returns; raise StoreUnavailable, and none of them counts then."""
        data = b"".join(_encode(call) + b"\n" for call in calls)
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self._write(handle, data)
            finally:
                os.close(handle)
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: cannot be written ({error.strerror})") from error

    def begin(self) -> list[Waiting]:
        """Return what waits, without what is no call; it stays until `end`."""
        try:
            if not self._taking.exists():
                self._path.rename(self._taking)
            data = self._taking.read_bytes()
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: cannot be read ({error.strerror})") from error
        found = []
        for line in data.split(b"\n")[:-1]:
            try:
                call = _decode(line)
                if call.event_id:
                    found.append(call)
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
                continue
        return found

    def end(self) -> None:
        """Forget what `begin` returned: it is in the store."""
        try:
            self._taking.unlink()
        except OSError as error:
            raise StoreUnavailable(f"{self._taking}: cannot be removed ({error.strerror})") from error

    def _write(self, handle: int, data: bytes) -> None:
        size = os.fstat(handle).st_size
        if size + len(data) > BYTES_MAX:
            raise StoreUnavailable(f"{self._path}: {size} bytes of calls wait already")
        if size and os.pread(handle, 1, size - 1) != b"\n":
            # What a crash tore stays a line of its own.
            data = b"\n" + data
        written = os.write(handle, data)
        if written != len(data):
            os.ftruncate(handle, size)
            raise StoreUnavailable(f"{self._path}: the disk is full")
        os.fsync(handle)
