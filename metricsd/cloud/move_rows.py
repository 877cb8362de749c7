"""The rows of an embedded cloud's tenant as PostgreSQL holds them, table by table, and a digest to compare the two by.

Numbers stay what they are: change numbers, nonces and numbers of terms, so that every cursor and revision that a
device knows is good on the other side. A digest covers every column of every row in the order of the table's key.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

DIGEST_BYTES = 16
_PAGE = 2_000


class Table(NamedTuple):
    """One table: its columns there and here, the key it is ordered by, and how a row is turned."""

    name: str
    columns: tuple[str, ...]
    key: str
    source: str
    """The query that reads the same columns from SQLite, in the order of the key."""
    convert: Callable[[tuple[Any, ...]], tuple[Any, ...]]


class Digest(NamedTuple):
    """How many rows a table has, and a hash of them."""

    rows: int
    hash: str


class Counting:
    """Passes rows on and keeps their digest."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=DIGEST_BYTES)
        self._rows = 0

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows += 1
        self._hash.update(repr(row).encode())

    def digest(self) -> Digest:
        return Digest(self._rows, self._hash.hexdigest())


def source_rows(db: sqlite3.Connection, table: Table, counting: Counting) -> Iterator[tuple[Any, ...]]:
    """Yield a table's rows as PostgreSQL holds them, keeping their digest."""
    for row in db.execute(table.source):
        turned = table.convert(row)
        counting.add(turned)
        yield turned


async def target_digest(db: Any, table: Table) -> Digest:
    """Return the digest of a table in the open transaction's schema, read back row by row."""
    counting = Counting()
    query = f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY {table.key}"  # noqa: S608 - constants
    async for row in db.cursor(query, prefetch=_PAGE):
        counting.add(tuple(row))
    return counting.digest()


def _encoded(*places: int) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return a conversion that makes bytes of the texts at these places."""

    def convert(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value.encode() if number in places and value is not None else value for number, value in enumerate(row)
        )

    return convert


def _table(
    name: str, columns: str, key: str, convert: Callable[[tuple[Any, ...]], tuple[Any, ...]], *, user: str = "user"
) -> Table:
    names = tuple(columns.split())
    there = ", ".join(user if column == "person" else column for column in names)
    return Table(name, names, key, f"SELECT {there} FROM {name} ORDER BY {key.replace('person', user)}", convert)  # noqa: S608


def _record(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*row[:2], row[2].encode(), *row[3:8], bool(row[8]), *row[9:])


TABLES: Iterable[Table] = (
    _table("term", "id text", "id", _encoded(1)),
    _table(
        "event",
        "change at epoch seq duration_ms input_bytes output_bytes lines_added lines_removed person device kind name app"
        " session tool outcome project branch model agent subject reason batch id call extra",
        "change",
        _encoded(25),
    ),
    _table("binding", "device epoch seq id reason", "device, epoch, seq", tuple),
    _table("device_stream", "device epoch start_seq last_seq last_id", "device, epoch", tuple),
    _table(
        "record",
        "person type id change nonce device fields stamps deleted stamp deleted_at",
        "change",
        _record,
    ),
    _table("policy", "version sha256 text set_at", "version", tuple),
    _table("change_log", "first last nonce", "first", tuple),
    _table("shut", "device", "device", tuple),
    _table("legacy_document", "person kind key session who began body", "person, kind, key", tuple, user="person"),
)
