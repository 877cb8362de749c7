"""How far each growing file has been read, and by what it is recognised.

A checkpoint commits with the rows it covers. A file is found by path, device and inode and trusted by two hashes:
of its head, and of the bytes just before the offset. On any doubt the file is read again from its start, which the
event ids make harmless; nothing is ever skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metricsd.store.connection import Store

_COLUMNS = "path, form, dev, ino, head_len, head_hash, mark_len, mark_hash, offset, lines, occurrences, seen_at"
_PUT = f"""
INSERT INTO source ({_COLUMNS}) VALUES ({", ".join("?" * 12)})
ON CONFLICT (path) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[1:])}
"""


class Checkpoint(NamedTuple):
    """Progress in one file: `offset` bytes and `lines` lines are stored; hashes are 16-byte BLAKE2b.

    `seen_at` is when the file had been written last, in microseconds: what was rotated unseen is younger.
    """

    path: str
    form: str
    dev: int
    ino: int
    head_len: int
    head_hash: bytes
    mark_len: int
    mark_hash: bytes
    offset: int
    lines: int
    occurrences: bytes
    seen_at: int


class Progress(NamedTuple):
    """A checkpoint of one file among several that are stored together."""

    checkpoint: Checkpoint

    def put(self, store: Store) -> None:
        """Store it inside the caller's transaction."""
        put(store, self.checkpoint)


def put(store: Store, checkpoint: Checkpoint) -> None:
    """Store the progress inside the caller's transaction."""
    store.db.execute(_PUT, checkpoint)


def drop(store: Store, paths: Sequence[str]) -> None:
    """Forget the progress of files that are not followed any more, inside the caller's transaction."""
    store.db.executemany("DELETE FROM source WHERE path = ?", [(path,) for path in paths])


def load_all(store: Store) -> dict[str, Checkpoint]:
    """Return all checkpoints by path."""
    return {row[0]: Checkpoint(*row) for row in store.db.execute(f"SELECT {_COLUMNS} FROM source")}
