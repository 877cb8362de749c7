"""Interned strings: every repeated name is stored once and referred to by a small integer.

The caches live only as long as the rows they mirror: a rolled-back transaction calls `forget()`. They are bounded,
because names come from strangers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

CACHE_MAX = 50_000


class Terms:
    """The interning tables of one open database."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.texts: dict[str, int] = {}
        self.types: dict[tuple[str, str, str], int] = {}
        self.sessions: dict[tuple[str, str], int] = {}
        self.devices: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def forget(self) -> None:
        """Drop every cache; rows of a rolled-back transaction may be in them."""
        for cache in (self.texts, self.types, self.sessions, self.devices, self._names):
            cache.clear()

    def text(self, text: str) -> int:
        """Return the id of `text`, adding it when new."""
        known = self.texts.get(text)
        if known is None:
            known = _intern(self._db, "term", ("text",), (text,))
            _remember(self.texts, text, known)
        return known

    def type(self, app: str, kind: str, name: str) -> int:
        """Return the id of an event type, adding it when new."""
        key = (app, kind, name)
        known = self.types.get(key)
        if known is None:
            known = _intern(self._db, "event_type", ("app", "kind", "name"), key)
            _remember(self.types, key, known)
        return known

    def session(self, app: str, session_id: str) -> int:
        """Return the id of a session, adding it when new."""
        key = (app, session_id)
        known = self.sessions.get(key)
        if known is None:
            known = _intern(self._db, "session", ("app", "session_id"), key)
            _remember(self.sessions, key, known)
        return known

    def device(self, device_id: str) -> int:
        """Return the row of a device, adding it (as not own) when new."""
        known = self.devices.get(device_id)
        if known is None:
            known = _intern(self._db, "device", ("device_id",), (device_id,))
            _remember(self.devices, device_id, known)
        return known

    def name(self, term: int | None) -> str | None:
        """Return the text of a term id; None for None and for 0."""
        if not term:
            return None
        known = self._names.get(term)
        if known is None:
            row = self._db.execute("SELECT text FROM term WHERE id = ?", (term,)).fetchone()
            if row is None:
                return None
            known = str(row[0])
            _remember(self._names, term, known)
        return known


def _remember(cache: dict[K, V], key: K, value: V) -> None:
    if len(cache) >= CACHE_MAX:
        cache.clear()
    cache[key] = value


def _intern(db: sqlite3.Connection, table: str, columns: Iterable[str], values: tuple[str, ...]) -> int:
    # Table and columns are constants of this module; only values are bound.
    where = " AND ".join(f"{column} = ?" for column in columns)
    row = db.execute(f"SELECT id FROM {table} WHERE {where}", values).fetchone()
    if row is None:
        names, marks = ", ".join(columns), ", ".join("?" for _ in values)
        row = db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks}) RETURNING id", values).fetchone()
    return int(row[0])
