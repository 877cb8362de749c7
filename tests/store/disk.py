"""A disk under SQLite that fails on command and remembers what was written, for tests of the real store.

It is a VFS registered through ctypes in the very library that Python's sqlite3 uses, in front of the platform's own,
so that the code under test is the product as it is. Reads, writes, truncations, syncs, opens, deletes, sizes and
shared-memory maps pass through here; a few calls that the product makes to the system itself (fsync, unlink, rename)
are taken in by patching them.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import os
from collections.abc import Iterator
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import pytest

OK, FULL, CANTOPEN = 0, 13, 14
IOERR = {
    "read": 10 | 1 << 8, "write": 10 | 3 << 8, "sync": 10 | 4 << 8, "truncate": 10 | 6 << 8, "size": 10 | 7 << 8,
    "delete": 10 | 10 << 8, "access": 10 | 13 << 8, "shm": 10 | 21 << 8, "open": CANTOPEN,
}  # fmt: skip
WRITING = frozenset({"write", "truncate", "shm", "os.fsync", "os.open"})
"""Operations that a full disk refuses."""
OPEN_CREATE = 4

# The name stays a pointer: SQLite keeps it as long as the file is open, and reads what lies behind it.
_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_Access = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int, POINTER(c_int))
_Close = CFUNCTYPE(c_int, c_void_p)
_Read = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)
_Size = CFUNCTYPE(c_int, c_void_p, POINTER(c_int64))
_ShmMap = CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, POINTER(c_void_p))


class _Vfs(Structure):
    _fields_ = (
        ("version", c_int), ("file_size", c_int), ("path_max", c_int), ("next", c_void_p), ("name", c_char_p),
        ("data", c_void_p), ("open", _Open), ("delete", _Delete), ("access", _Access),
        *((f"other{n}", c_void_p) for n in range(13)),
    )  # fmt: skip


class _Methods(Structure):
    _fields_ = (
        ("version", c_int), ("close", _Close), ("read", _Read), ("write", _Read), ("truncate", _Truncate),
        ("sync", _Sync), ("size", _Size), *((f"other{n}", c_void_p) for n in range(6)), ("shm_map", _ShmMap),
        *((f"more{n}", c_void_p) for n in range(5)),
    )  # fmt: skip


class Op(NamedTuple):
    """One thing that happened to a file: `what` is create, write, truncate, sync, delete, rename or mark."""

    what: str
    path: str
    offset: int = 0
    data: bytes = b""
    to: str = ""


class _File(NamedTuple):
    path: str
    real: _Methods


class Disk:
    """Counts operations, fails the one that it is told to, and keeps a trace if asked."""

    def __init__(self) -> None:
        library = ctypes.CDLL(_sqlite3.__file__)
        self._register, self._unregister = library.sqlite3_vfs_register, library.sqlite3_vfs_unregister
        self._register.argtypes, self._unregister.argtypes = (c_void_p, c_int), (c_void_p,)
        library.sqlite3_vfs_find.restype, library.sqlite3_vfs_find.argtypes = c_void_p, (c_char_p,)
        self._real_address: int = library.sqlite3_vfs_find(None)
        self._real = _Vfs.from_address(self._real_address)
        self._files: dict[int, _File] = {}
        self._methods: dict[int, _Methods] = {}
        self._vfs = _Vfs.from_buffer_copy(self._real)
        self._vfs.name = b"faulty"
        self._vfs.open, self._vfs.delete, self._vfs.access = (
            _Open(self._open),
            _Delete(self._delete),
            _Access(self._access),
        )
        self.trace: list[Op] | None = None
        self.aim()

    def aim(self, at: int = 0, *, kind: str = "ioerr", length: int = 1) -> None:
        """Fail `length` operations from number `at` on, of those that `kind` can hit; none for 0."""
        self._at, self._kind, self._length = at, kind, length
        self.count = self.hits = 0

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Disk]:
        """Be the disk of every connection that is opened inside, and of the product's own calls."""
        with pytest.MonkeyPatch.context() as patch:
            self._patch_system(patch)
            self._register(ctypes.addressof(self._vfs), 1)
            try:
                yield self
            finally:
                self._unregister(ctypes.addressof(self._vfs))
                self._register(self._real_address, 1)

    def note(self, op: Op) -> None:
        """Add to the trace, if one is kept."""
        if self.trace is not None:
            self.trace.append(op)

    def _code(self, what: str) -> int:
        """Count an operation; return the code of its failure, or OK."""
        if self._kind == "full" and what not in WRITING:
            return OK
        self.count += 1
        if not self._at or not self._at <= self.count < self._at + self._length:
            return OK
        self.hits += 1
        return FULL if self._kind == "full" else IOERR.get(what, 10)

    def _open(self, _vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        if code := self._code("open"):
            c_void_p.from_address(file).value = None
            return code
        new = bool(path) and not os.path.exists(path)
        done: int = self._real.open(self._real_address, name, file, flags, out)
        pointer = c_void_p.from_address(file)
        if done == OK and pointer.value:
            real = _Methods.from_address(pointer.value)
            self._files[file] = _File(path, real)
            pointer.value = ctypes.addressof(self._wrapped(pointer.value, real))
            if new:
                self.note(Op("create", path))
        return done

    def _wrapped(self, address: int, real: _Methods) -> _Methods:
        found = self._methods.get(address)
        if found is None:
            found = self._methods[address] = _Methods.from_buffer_copy(real)
            found.close, found.size = _Close(self._close), _Size(self._size)
            found.read, found.write = _Read(self._read), _Read(self._write)
            found.truncate, found.sync = _Truncate(self._truncate), _Sync(self._sync)
            if real.version >= 2 and ctypes.cast(real.shm_map, c_void_p).value:
                found.shm_map = _ShmMap(self._shm_map)
        return found

    def _delete(self, _vfs: int, name: bytes, sync: int) -> int:
        code = self._code("delete") or self._real.delete(self._real_address, name, sync)
        if code == OK:
            self.note(Op("delete", os.fsdecode(name)))
        return int(code)

    def _access(self, _vfs: int, name: bytes, flags: int, out: Any) -> int:
        return self._code("access") or int(self._real.access(self._real_address, name, flags, out))

    def _close(self, file: int) -> int:
        return int(self._files.pop(file).real.close(file))

    def _read(self, file: int, buffer: int, size: int, offset: int) -> int:
        return self._code("read") or int(self._files[file].real.read(file, buffer, size, offset))

    def _write(self, file: int, buffer: int, size: int, offset: int) -> int:
        if code := self._code("write"):
            return code
        if self.trace is not None:
            self.note(Op("write", self._files[file].path, offset, ctypes.string_at(buffer, size)))
        return int(self._files[file].real.write(file, buffer, size, offset))

    def _truncate(self, file: int, size: int) -> int:
        if code := self._code("truncate"):
            return code
        self.note(Op("truncate", self._files[file].path, size))
        return int(self._files[file].real.truncate(file, size))

    def _sync(self, file: int, flags: int) -> int:
        if code := self._code("sync"):
            return code
        self.note(Op("sync", self._files[file].path))
        # Memory is disk enough here: a real sync would only cost time.
        return OK

    def _size(self, file: int, out: Any) -> int:
        return self._code("size") or int(self._files[file].real.size(file, out))

    def _shm_map(self, file: int, page: int, size: int, extend: int, out: Any) -> int:
        return self._code("shm") or int(self._files[file].real.shm_map(file, page, size, extend, out))

    def _patch_system(self, patch: pytest.MonkeyPatch) -> None:
        real_open, real_unlink, real_replace = os.open, os.unlink, os.replace

        def opening(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_CREAT:
                self._raise("os.open", path)
            return real_open(path, flags, *rest, **more)

        def syncing(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            self._raise("os.fsync", path)
            if self.trace is not None and os.path.isfile(path):
                self.note(Op("write", path, 0, Path(path).read_bytes()))
            self.note(Op("sync", path))

        # pathlib calls these two as well.
        def unlinking(path: Any, *rest: Any, **more: Any) -> None:
            self._raise("os.unlink", path)
            real_unlink(path, *rest, **more)
            self.note(Op("delete", str(path)))

        def replacing(path: Any, target: Any) -> None:
            self._raise("os.rename", path)
            self.note(Op("rename", str(path), to=str(target)))
            real_replace(path, target)

        patch.setattr(os, "open", opening)
        patch.setattr(os, "fsync", syncing)
        patch.setattr(os, "unlink", unlinking)
        patch.setattr(os, "replace", replacing)

    def _raise(self, what: str, path: Any) -> None:
        if code := self._code(what):
            raise OSError(28 if code == FULL else 5, "injected", str(path))


def make_disk() -> Disk:
    """Return a disk; skip where Python's SQLite hides its functions."""
    try:
        return Disk()
    except AttributeError as error:
        pytest.skip(f"STORAGE FAULTS ARE NOT TESTED HERE: this Python hides SQLite's own functions ({error})")
