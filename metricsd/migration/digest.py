"""Digests of many rows that do not depend on their order, and can be added and subtracted.

A digest is a count and the sum, modulo 2^64, of one keyed 64-bit hash a row. Two sides that hold the same rows have
the same digest whatever the order; what a rollback takes out can be subtracted. The key is random for each run, so
that nobody can make rows that cancel out. Rows are summed in code: SQLite's own `sum` overflows at a million.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

import msgspec

KEY_BYTES = 16
CELLS_MAX = 20_000
"""Cells kept apart by tool, about 5 MB; with more, tools are added together and days stay apart."""
ALL_TOOLS = "*"
_MASK = (1 << 64) - 1
_HASH_BYTES = 8

Row = tuple[object, ...]
"""A row in its canonical form (see rows.py): texts, whole numbers, floats, None, and rows."""

_encode = msgspec.msgpack.Encoder().encode


class Cell(NamedTuple):
    """What rows are added up by. `day` is in days since 1970 UTC, -1 for rows without a time."""

    table: str
    day: int
    tool: str


class Digest(NamedTuple):
    """How many rows there are, and the sum of their hashes."""

    rows: int = 0
    sum: int = 0

    def plus(self, other: Digest) -> Digest:
        return Digest(self.rows + other.rows, (self.sum + other.sum) & _MASK)

    def minus(self, other: Digest) -> Digest:
        return Digest(self.rows - other.rows, (self.sum - other.sum) & _MASK)


NOTHING = Digest()


def new_key() -> bytes:
    """Return a key for one run's hashes."""
    return secrets.token_bytes(KEY_BYTES)


class RowHash:
    """Hashes rows with one key. None, an empty text, 0 and 0.0 are four different things."""

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        self._keyed = blake2b(digest_size=_HASH_BYTES, key=key)

    def __call__(self, row: Row) -> int:
        """Return the row's hash, a whole number of 64 bits."""
        # A copy of the keyed state costs half of what starting from the key does.
        state = self._keyed.copy()
        state.update(_encode(row))
        return int.from_bytes(state.digest(), "little")


class Cells:
    """Digests by table, day and tool, in bounded memory.

    Hostile input can name a new tool on every line. With more than CELLS_MAX cells the tools of each day are added
    together; both sides of a comparison are brought to the coarser of their two levels, which loses no row.
    """

    __slots__ = ("_cells", "by_tool")

    def __init__(self, cells: Mapping[Cell, Digest] | None = None, *, by_tool: bool = True) -> None:
        self._cells: dict[Cell, list[int]] = {}
        self.by_tool = by_tool
        for cell, digest in (cells or {}).items():
            self.add(cell, digest)

    def add(self, cell: Cell, digest: Digest) -> None:
        """Add a digest to a cell."""
        count, total = digest
        key = cell if self.by_tool or cell.tool == ALL_TOOLS else cell._replace(tool=ALL_TOOLS)
        known = self._cells.get(key)
        if known is not None:
            known[0] += count
            known[1] = (known[1] + total) & _MASK
            return
        self._cells[key] = [count, total & _MASK]
        if self.by_tool and len(self._cells) > CELLS_MAX:
            self._fold()

    def subtract(self, other: Cells) -> None:
        """Take another side's rows away."""
        if not other.by_tool:
            self._fold()
        for cell, (count, total) in list(other.items()):
            self.add(cell, Digest(-count, -total & _MASK))

    def items(self) -> Iterator[tuple[Cell, Digest]]:
        """Yield the cells that hold anything."""
        for cell, (count, total) in self._cells.items():
            if count or total:
                yield cell, Digest(count, total)

    def total(self, table: str | None = None) -> Digest:
        """Return the digest of a table, of all tables without one."""
        found = NOTHING
        for cell, digest in self.items():
            if table is None or cell.table == table:
                found = found.plus(digest)
        return found

    def differing(self, other: Cells) -> list[tuple[Cell, Digest, Digest]]:
        """Return the cells in which the two sides differ, with this side's digest and the other's."""
        by_tool = self.by_tool and other.by_tool
        mine, its = (dict(Cells(dict(side.items()), by_tool=by_tool).items()) for side in (self, other))
        return [
            (name, mine.get(name, NOTHING), its.get(name, NOTHING))
            for name in sorted(mine.keys() | its.keys())
            if mine.get(name, NOTHING) != its.get(name, NOTHING)
        ]

    def _fold(self) -> None:
        if self.by_tool:
            cells, self._cells, self.by_tool = self._cells, {}, False
            for cell, (count, total) in cells.items():
                self.add(cell, Digest(count, total))
