"""What older hooks and clients of the older API said beyond our own fields, kept for those clients alone.

Names of people, folders, parameters: it is never sent, stands in no report, can be deleted, and is bounded: one item
by ITEM_BYTES_MAX, all of them by a cap at which `sweep` drops the oldest. Known secret fields are replaced before
anything is written. `suggestions` and `orphans` keep items of kinds of their own here. Functions that write run
inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from metricsd.scrubbing import scrub
from metricsd.store.connection import Store

SESSION = "session"
TOOL = "tool"
ITEM_BYTES_MAX = 64 * 1024
TOTAL_BYTES_MAX = 64 * 1024 * 1024
SWEPT_MAX = 10_000
"""Items that one sweep drops."""

_PUT = """
INSERT INTO legacy_extra (kind, key, at, bytes, body, who, began) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET at = excluded.at, bytes = excluded.bytes, body = excluded.body, who = excluded.who,
    began = excluded.began WHERE body != excluded.body
"""
GET = "SELECT body FROM legacy_extra WHERE kind = ? AND key = ?"
_OLDEST = "SELECT kind, key, bytes FROM legacy_extra ORDER BY at LIMIT ?"

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Extra(NamedTuple):
    """An item to keep: new keys are added to what is known of it, known ones are replaced."""

    kind: str
    key: str
    values: Mapping[str, Any]

    def put(self, store: Store) -> None:
        """Write it inside the caller's transaction."""
        if self.values:
            add(store, self.kind, self.key, self.values)


def add(store: Store, kind: str, key: str, values: Mapping[str, Any]) -> bool:
    """Keep values beside those known of an item; return False, and change nothing, if it would be too large."""
    return put(store, kind, key, {**(find(store, kind, key) or {}), **values})


def put(store: Store, kind: str, key: str, values: Mapping[str, Any]) -> bool:
    """Keep an item as these values alone; return False, and change nothing, if it is too large."""
    body = scrub(_encode(values))
    if len(body) > ITEM_BYTES_MAX:
        return False
    who, began = (values.get("user"), values.get("start_us")) if kind == SESSION else (None, None)
    known = (who if isinstance(who, str) else None, began if isinstance(began, int) else None)
    store.db.execute(_PUT, (kind, key, store.clock.now_us(), len(body), body.decode(), *known))
    return True


def find(store: Store, kind: str, key: str) -> dict[str, Any] | None:
    """Return what is kept of an item, None for nothing."""
    row = store.db.execute(GET, (kind, key)).fetchone()
    return None if row is None else _decode(row[0])


def drop(store: Store, kind: str, key: str) -> None:
    """Forget an item."""
    store.db.execute("DELETE FROM legacy_extra WHERE kind = ? AND key = ?", (kind, key))


def sweep(store: Store, bytes_max: int = TOTAL_BYTES_MAX) -> int:
    """Drop the oldest items until all of them fit; return how many went. A transaction of its own."""
    with store.transaction():
        held = int(store.db.execute("SELECT coalesce(sum(bytes), 0) FROM legacy_extra").fetchone()[0])
        gone = []
        for kind, key, size in store.db.execute(_OLDEST, (SWEPT_MAX,)).fetchall() if held > bytes_max else ():
            if held <= bytes_max:
                break
            held -= size
            gone.append((kind, key))
        store.db.executemany("DELETE FROM legacy_extra WHERE kind = ? AND key = ?", gone)
    return len(gone)
