"""A side of a comparison on disk: for each row its identity, its hash, its cell and where it was read.

Rows are dealt by identity into files of a private folder, so that two sides of any size are matched row by row with
no more in memory than one such file of each. Nothing is sorted and nothing is sampled: every row of both sides is
compared. Memory while writing is bounded by FLUSH_ROWS, while reading by PART_BYTES_MAX.
"""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from metricsd.migration.digest import ALL_TOOLS, CELLS_MAX, Cell

FLUSH_ROWS = 16_384
"""Rows held before they are written: half a megabyte."""
PART_BYTES_MAX = 1024 * 1024
"""A part that is larger is dealt out once more before it is read; 32,768 rows in memory are about 6 MB."""
_PARTS = 64
_BITS = 6
_BITS_MAX = 48
"""Rows that agree in so many bits of their identity are rows of one identity, in any number."""
_WORDS = 4
_ROW_BYTES = _WORDS * 8
_BLOCK_BYTES = 4096 * _ROW_BYTES


class Entry(NamedTuple):
    """One row: identity and hash of 64 bits, the number of its cell, and the side's own word for where it was."""

    identity: int
    hash: int
    cell: int
    place: int


class Side:
    """The rows of one side: written once, then matched with another side's.

    A small one never touches the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_on_disk = False
        self.cells: list[Cell] = []
        self._written = 0
        self._numbers: dict[Cell, int] = {}
        self._parts: list[array[int]] = [array("Q") for _ in range(_PARTS)]
        self._held = 0

    @classmethod
    def reopen(cls, folder: Path, cells: list[Cell], rows: int) -> Side:
        """Return a side that was written by another process, for reading."""
        side = cls(folder)
        side.cells, side._written, side._is_on_disk = cells, rows, True
        return side

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._written + self._held

    def number(self, cell: Cell) -> int:
        """Return the number of a cell; beyond CELLS_MAX cells the one of all tools of its day."""
        known = self._numbers.get(cell)
        if known is not None:
            return known
        if len(self.cells) >= CELLS_MAX and cell.tool != ALL_TOOLS:
            return self.number(cell._replace(tool=ALL_TOOLS))
        self._numbers[cell] = len(self.cells)
        self.cells.append(cell)
        return len(self.cells) - 1

    def add(self, identity: int, row_hash: int, cell: int, place: int) -> None:
        """Add a row of the cell with this number."""
        self._parts[identity % _PARTS].extend((identity, row_hash, cell, place))
        self._held += 1
        if self._held >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self._is_on_disk:
            # Not with its parents: who goes on writing for a run that was killed must not make its folder anew.
            self.folder.mkdir(exist_ok=True, mode=0o700)
            self._is_on_disk = True
        for number, part in enumerate(self._parts):
            if part:
                with _part(self.folder, number).open("ab") as file:
                    part.tofile(file)
                del part[:]
        self._written += self._held
        self._held = 0

    def drop(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


Pair = tuple[Iterator[Entry], Iterator[Entry]]


def pairs(one: Side, other: Side) -> Iterator[Pair]:
    """Yield the rows of both sides part by part: rows of one identity are in the same part of either side."""
    if not one._is_on_disk and not other._is_on_disk:
        yield from ((_rows(ours), _rows(theirs)) for ours, theirs in zip(one._parts, other._parts, strict=True))
        return
    one.flush()
    other.flush()
    for number in range(_PARTS):
        yield from _pairs(_part(one.folder, number), _part(other.folder, number), _BITS)


def _pairs(one: Path, other: Path, bits: int) -> Iterator[Pair]:
    if max(_size(one), _size(other)) <= PART_BYTES_MAX or bits >= _BITS_MAX:
        yield _entries(one), _entries(other)
        return
    folders = [_dealt(path, bits) for path in (one, other)]
    for number in range(_PARTS):
        yield from _pairs(_part(folders[0], number), _part(folders[1], number), bits + _BITS)
    for folder in folders:
        shutil.rmtree(folder)


def _dealt(path: Path, bits: int) -> Path:
    """Deal the rows of a part out by the next bits of their identities; return the folder that holds them."""
    side = Side(path.with_name(f"{path.name}.dealt"))
    for block in _blocks(path):
        for at in range(0, len(block), _WORDS):
            side._parts[(block[at] >> bits) % _PARTS].extend(block[at : at + _WORDS])
        side.flush()
    return side.folder


def _entries(path: Path) -> Iterator[Entry]:
    for block in _blocks(path):
        yield from _rows(block)


def _rows(block: array[int]) -> Iterator[Entry]:
    return map(Entry, block[::4], block[1::4], block[2::4], block[3::4])


def _blocks(path: Path) -> Iterator[array[int]]:
    if not _size(path):
        return
    with path.open("rb") as file:
        while data := file.read(_BLOCK_BYTES):
            block = array("Q")
            block.frombytes(data)
            yield block


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:02d}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
