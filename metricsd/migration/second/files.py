"""The bytes of a source's files, cut into lines in bounded memory; plain files and gzip look the same."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedReader
from typing import NamedTuple

BLOCK_BYTES = 1024 * 1024
LINE_BYTES_MAX = 16 * 1024 * 1024
DOCUMENT_BYTES_MAX = 64 * 1024 * 1024
FAULTS = (OSError, EOFError, zlib.error)


class File(NamedTuple):
    """One file of the source, as the manifest names it: of its content, `size` bytes belong to the run."""

    number: int
    path: str
    kind: str
    packed: bool
    size: int
    rank: int


def lines(file: File) -> Iterator[tuple[int, bytes | None]]:
    """Yield number and bytes of each line that is not blank; None for one that is too long.

    Raises one of FAULTS for content that cannot be read to its end.
    """
    number, rest, too_long = 0, b"", False
    with _opened(file) as stream:
        left = file.size
        while left > 0 and (block := stream.read(min(BLOCK_BYTES, left))):
            left -= len(block)
            *whole, tail = (rest + block).split(b"\n")
            for line in whole:
                number += 1
                if too_long:
                    too_long = False
                    yield number, None
                elif line and not line.isspace():
                    yield number, line
            rest = tail
            if len(rest) > LINE_BYTES_MAX:
                rest, too_long = b"", True
    if too_long or (rest and not rest.isspace()):
        yield number + 1, None if too_long else rest


def document(file: File) -> bytes | None:
    """Return a document's bytes; None for one that is too long. Raises one of FAULTS."""
    if file.size > DOCUMENT_BYTES_MAX:
        return None
    with _opened(file) as stream:
        return stream.read(file.size)


def _opened(file: File) -> gzip.GzipFile | BufferedReader:
    # The reader closes what it gets: a generator or a block.
    return gzip.open(file.path, "rb") if file.packed else open(file.path, "rb")  # noqa: PTH123
