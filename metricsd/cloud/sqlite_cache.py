"""What was read from a SQLite file, remembered for exactly as long as nobody has changed the file.

`PRAGMA data_version` says whether any other connection, of any process, has committed since the last look, for the
price of reading one word of shared memory. So an answer is always as fresh as a query's would be: a token that was
revoked a moment ago, wherever, is looked up again. It must never be asked by two threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

V = TypeVar("V")

ENTRIES_MAX = 20_000


class FileCache(Generic[V]):
    """Values by key, read through a connection of its own that never waits for a lock."""

    def __init__(self, path: Path) -> None:
        """Open a file that is there already, with its schema."""
        self._db = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA query_only = ON")
        self._version = -1
        self._values: dict[bytes, V] = {}

    def get(self, key: bytes, load: Callable[[sqlite3.Connection], V]) -> V:
        """Return what `load` returns for this key, now; raise sqlite3.OperationalError when the file is locked."""
        version: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version or len(self._values) >= ENTRIES_MAX:
            self._values.clear()
            self._version = version
        elif key in self._values:
            return self._values[key]
        value = load(self._db)
        # A commit between the two reads is noticed by the next look, whose version then differs.
        self._values[key] = value
        return value

    def close(self) -> None:
        """Close the connection."""
        self._db.close()
