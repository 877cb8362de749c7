"""Small facts of the store by key: stream positions, cursors, counts. They change in the transaction of what they count."""

from __future__ import annotations

from metricsd.store.connection import Store

Value = int | float | str | bytes

_GET = "SELECT value FROM state WHERE key = ?"
_PUT = "INSERT INTO state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_ADD = "INSERT INTO state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value"


def get(store: Store, key: str, default: Value | None = None) -> Value | None:
    """Return the value of `key`, or `default`."""
    row = store.db.execute(_GET, (key,)).fetchone()
    return default if row is None else row[0]


def get_int(store: Store, key: str, default: int = 0) -> int:
    """Return an integer state; a value of another type counts as missing."""
    value = get(store, key)
    return value if isinstance(value, int) else default


def get_text(store: Store, key: str, default: str = "") -> str:
    """Return a text state; a value of another type counts as missing."""
    value = get(store, key)
    return value if isinstance(value, str) else default


def put(store: Store, key: str, value: Value) -> None:
    """Set `key`, inside the caller's transaction if one is open."""
    store.db.execute(_PUT, (key, value))


def add(store: Store, key: str, amount: int) -> None:
    """Add to a count, inside the caller's transaction if one is open."""
    store.db.execute(_ADD, (key, amount))


def delete(store: Store, key: str) -> None:
    """Forget `key`."""
    store.db.execute("DELETE FROM state WHERE key = ?", (key,))
