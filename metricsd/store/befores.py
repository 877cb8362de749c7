"""How things were before an import or a rollback changed them, so that exactly this can be put back.

A change is noted once for each address with what was there before its first change and a hash of what was left by its
last: whoever finds another hash knows that somebody changed it since. Addresses are a record's type and id, or
`legacy_extra/<kind>` and its key. Runs inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from metricsd.store import digests, legacy_extra, records
from metricsd.store.connection import Store

EXTRA_PREFIX = "legacy_extra/"
BACK = ""
"""Stands for a rule in `import_mark`: events of older imports that a part brought back."""
_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode

_NOTE = """
INSERT INTO {0} VALUES ({1})
ON CONFLICT DO UPDATE SET after = excluded.after
"""
_OF_PART = "SELECT type, id, before, after FROM import_before WHERE run = ? AND part = ? ORDER BY type, id"
_MARKS = "SELECT after FROM rollback_before WHERE type = ? AND id = ?"
_OF_ROLLBACK = "SELECT type, id, before, after FROM rollback_before WHERE rollback = ? AND part = ? ORDER BY type, id"


class Before(NamedTuple):
    """What was noted of one address. `before` has `fields`, and `deleted` for a record; None: it was not there."""

    type: str
    id: str
    before: Mapping[str, Any] | None
    after: bytes

    @property
    def fields(self) -> Mapping[str, Any]:
        """What its fields were."""
        found: Mapping[str, Any] = self.before["fields"] if self.before is not None else {}
        return found


class Journal:
    """Notes the changes of one part of an import, or of one rollback."""

    def __init__(self, store: Store, table: str, owner: tuple[object, ...]) -> None:
        self._store = store
        self._owner = owner
        self._sql = _NOTE.format(table, ", ".join("?" * (len(owner) + 4)))

    def change(self, kind: str, key: str, do: Callable[[], object]) -> bytes | None:
        """Do what changes one address and note it; return the hash of what is there then, None if nothing changed."""
        before = find(self._store, kind, key)
        do()
        after = find(self._store, kind, key)
        if after == before:
            return None
        text = None if before is None else _encode(before).decode()
        mark = mark_of(kind, key, after)
        self._store.db.execute(self._sql, (*self._owner, kind, key, text, mark))
        return mark


def of_part(store: Store, run: str, part: int) -> list[Before]:
    """Return what a part of a run changed."""
    return list(_read(store, _OF_PART, (run, part)))


def of_rollback(store: Store, rollback: str, part: int) -> list[Before]:
    """Return what a rollback changed of a part."""
    return list(_read(store, _OF_ROLLBACK, (rollback, part)))


def cleared_fields(store: Store, kind: str, key: str) -> frozenset[str]:
    """Return the fields of a record that a rollback cleared, if nobody has changed the record since."""
    marks = [row[0] for row in store.db.execute(_MARKS, (kind, key))]
    found = find(store, kind, key) if marks else None
    if found is None or mark_of(kind, key, found) not in marks:
        return frozenset()
    return frozenset(name for name, value in found["fields"].items() if value is None)


def find(store: Store, kind: str, key: str) -> dict[str, Any] | None:
    """Return what is at an address now, None for nothing."""
    if kind.startswith(EXTRA_PREFIX):
        found = legacy_extra.find(store, kind.removeprefix(EXTRA_PREFIX), key)
        return None if found is None else {"fields": found}
    record = records.get(store, kind, key)
    if record is None:
        return None
    version = record.version
    return {"fields": version.fields, "stamps": version.stamps, "deleted": version.deleted}


def mark_of(kind: str, key: str, found: Mapping[str, Any] | None) -> bytes:
    """Return the hash of what is at an address. Stamps are no part of it, and a cleared field is one that is not there."""
    fields = found["fields"] if found is not None else {}
    return digests.hash_of(kind, key, {name: value for name, value in fields.items() if value is not None})


def _read(store: Store, sql: str, values: tuple[object, ...]) -> Iterator[Before]:
    for kind, key, before, after in store.db.execute(sql, values):
        yield Before(kind, key, None if before is None else _decode(before), after)
