"""The content of one file of the source, in stretches of whole lines, with a digest of what was passed.

Plain files and gzip look the same from here. A run reads the first `size` bytes as the survey found them; what is
shorter than that has changed. Memory holds one stretch or one line, and a line that is too long is walked over.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from metricsd.decode.older_hooks import object_of
from metricsd.errors import LineRejected, SourceChanged
from metricsd.migration.discover import DOCUMENT_BYTES_MAX, READ_ERRORS, open_content
from metricsd.reasons import Reason

STRETCH_BYTES = 1024 * 1024
LINE_BYTES_MAX = 16 * 1024 * 1024
DIGEST_BYTES = 16
ALL = (1 << 63) - 1
UNREADABLE = "unreadable"
"""Stands for the digest of a file that cannot be opened."""
_decode = msgspec.json.Decoder().decode


class Stretch(NamedTuple):
    """Whole lines, or the last one without its newline: the content's bytes from `offset` on.

    skipped  bytes of one line that was too long: `data` is empty then
    """

    offset: int
    data: bytes
    skipped: int = 0


class Content:
    """One file that is being read. Use as a context manager; what it raises of its own is SourceChanged."""

    def __init__(self, path: str, *, packed: bool, size: int = ALL) -> None:
        """`size` bytes are read, or all there are without one. Raises OSError for a file that cannot be opened."""
        self._path = path
        self._left = size
        self._is_exact = size != ALL
        self._file = open_content(path, packed=packed)
        self._hash = blake2b(digest_size=DIGEST_BYTES)
        self.offset = 0
        """Bytes that were passed."""
        self.torn = ""
        """Why the content ended before its end, where it was to be read whole."""

    def __enter__(self) -> Content:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def digest(self) -> str:
        """Return the digest of what was passed, hexadecimal."""
        return self._hash.copy().hexdigest()

    def passed(self, data: bytes | memoryview) -> None:
        """Note that these bytes, which come next, have been dealt with."""
        self._hash.update(data)
        self.offset += len(data)

    def skip(self, size: int) -> None:
        """Pass the first `size` bytes."""
        while size > 0:
            data = self._read(min(STRETCH_BYTES, size))
            if not data:
                raise self._changed("is shorter than when it was read")
            self.passed(data)
            size -= len(data)

    def stretches(self) -> Iterator[Stretch]:
        """Yield what is left; the caller tells by `passed` what it has dealt with before it asks for the next."""
        rest = b""
        while data := self._read(STRETCH_BYTES):
            end = data.rfind(b"\n") + 1
            if end:
                yield Stretch(self.offset, rest + data[:end])
                rest = data[end:]
            elif len(rest) + len(data) <= LINE_BYTES_MAX:
                rest += data
            else:
                rest = yield from self._walk_over(rest + data)
                if end := rest.rfind(b"\n") + 1:
                    yield Stretch(self.offset, rest[:end])
                    rest = rest[end:]
        if self._is_exact and self._left:
            raise self._changed("is shorter than when it was read")
        if rest:
            yield Stretch(self.offset, rest)

    def _walk_over(self, start: bytes) -> Generator[Stretch, None, bytes]:
        """Pass a line that is too long, and return what was read behind it."""
        begin = self.offset
        self.passed(start)
        rest = b""
        while data := self._read(STRETCH_BYTES):
            end = data.find(b"\n") + 1
            self.passed(data[:end] if end else data)
            if end:
                rest = data[end:]
                break
        yield Stretch(begin, b"", self.offset - begin)
        return rest

    def _read(self, size: int) -> bytes:
        try:
            # One step of unpacking at a time: of a torn file, what came before the tear is not lost with it.
            data = self._file.read1(min(size, self._left))
        except READ_ERRORS as error:
            if self._is_exact:
                raise self._changed(f"cannot be read any more ({error})") from error
            self.torn = str(error)
            return b""
        self._left -= len(data)
        return data

    def _changed(self, how: str) -> SourceChanged:
        return SourceChanged(
            f"{self._path} {how}: put the source back as it was and resume, or begin anew with `metricsd migrate run`"
        )


def whole(content: Content) -> bytes:
    """Return a document's content; raise LineRejected for one that is too long or torn."""
    parts = []
    for stretch in content.stretches():
        if stretch.skipped or content.offset + len(stretch.data) > DOCUMENT_BYTES_MAX:
            raise LineRejected(Reason.TOO_LONG.value, "a document above 64 MiB, or with a line above 16 MiB")
        content.passed(stretch.data)
        parts.append(stretch.data)
    if content.torn:
        raise LineRejected(Reason.UNREADABLE.value, content.torn)
    return b"".join(parts)


def items_of(data: bytes) -> list[Any]:
    """Return the objects of a document; raise LineRejected for what is none."""
    if data.lstrip()[:1] != b"[":
        return [object_of(data)]
    try:
        found = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LineRejected(Reason.BAD_JSON.value, str(error)) from None
    except RecursionError:
        raise LineRejected(Reason.TOO_DEEP.value, "arrays or objects nested too deep") from None
    return list(found)
