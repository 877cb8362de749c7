"""What is new in a tenant's file: read every second while devices listen, so it must cost next to nothing.

It has one thread and few connections of its own, because a stream that is open for hours must not keep a tenant's
store open, of which there are few. A file that is not there yet has no news.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metricsd.cloud.backend import News
from metricsd.cloud.sqlite_file import as_refusal

FILES_MAX = 64
"""Connections that are kept; each costs three descriptors and the pages of a small cache."""
CACHE_KIB = 256
BUSY_TIMEOUT_S = 0.5
_HEAD = "SELECT change FROM counter"
# One statement for all users: for each, the index that ends in the change number is entered behind the last one seen.
_WRITERS = """
SELECT who.text, device.text, max(change) FROM (
    SELECT r.user, r.device, r.change FROM term t JOIN record r ON r.user = t.id AND r.change > ?1
    WHERE t.text IN (SELECT value FROM json_each(?2))
    UNION ALL
    SELECT e.user, e.device, e.change FROM term t JOIN event e ON e.user = t.id AND e.change > ?1
    WHERE t.text IN (SELECT value FROM json_each(?2))
) AS behind JOIN term who ON who.id = behind.user JOIN term device ON device.id = behind.device
GROUP BY who.text, device.text
"""


class NewsReader:
    """Reads the news of any tenant's file."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, sqlite3.Connection] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="news")

    async def read(self, path: Path, after: int | None, users: Collection[str]) -> News:
        """Return the newest change number, and who wrote behind `after`; raise 503 when the file cannot be read."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, path, after, users)
        except sqlite3.OperationalError as error:
            raise as_refusal(error) from error

    def close(self) -> None:
        """Close every connection, after the read that runs now."""
        self._pool.submit(self._close_all)
        self._pool.shutdown(wait=True)

    def _read(self, path: Path, after: int | None, users: Collection[str]) -> News:
        db = self._connection(path)
        if db is None:
            return News(0, {})
        try:
            db.execute("BEGIN")
            with contextlib.closing(db.execute(_HEAD)) as rows:
                head = int(rows.fetchone()[0])
            found = [] if after is None or head <= after else db.execute(_WRITERS, (after, json.dumps(list(users))))
            news = News(head, {(user, device): int(change) for user, device, change in found})
            db.execute("COMMIT")
        except sqlite3.Error:
            # Whatever is wrong, the next read opens the file anew.
            self._open.pop(path).close()
            raise
        return news

    def _connection(self, path: Path) -> sqlite3.Connection | None:
        db = self._open.get(path)
        if db is None:
            # Only a file whose schema is there: making one is the store's work.
            if not path.is_file():
                return None
            db = sqlite3.connect(
                f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None,
                check_same_thread=False,
            )  # fmt: skip
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            db.execute("PRAGMA query_only = ON")
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                db.close()
                return None
            while len(self._open) >= FILES_MAX:
                self._open.popitem(last=False)[1].close()
            self._open[path] = db
        self._open.move_to_end(path)
        return db

    def _close_all(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
