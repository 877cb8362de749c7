"""Values that a file tells of a record, for the fields that nobody has set.

A person's edit, on whichever device, always stands over what an older program noted, and a deleted record stays
deleted. A field that has a value changes only when the same file tells another one than it told before, and nobody
has changed the field since: files are rewritten. So a file may be read any number of times, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from metricsd import fields
from metricsd.protocol import FieldValue
from metricsd.store import legacy_extra, records
from metricsd.store.connection import Store

TOLD = "told"
"""Kind of the items in `legacy_extra` that say what each file last told of a record."""


class Suggestion(NamedTuple):
    """Values for fields of one record. A value that the field cannot have is passed over.

    `source` names the file that may tell others later; without one only fields that were never set are.
    """

    type: str
    id: str
    values: Mapping[str, FieldValue]
    source: str = ""

    def put(self, store: Store) -> None:
        """Set the fields that are the file's to set, inside the caller's transaction."""
        known = records.get(store, self.type, self.id)
        if known is not None and known.version.deleted:
            return
        stamps = known.version.stamps if known is not None else {}
        now = known.version.fields if known is not None else {}
        told = {
            name: value
            for name, value in self.values.items()
            if value is not None and fields.problem(self.type, name, value) is None
        }
        before = self._told_before(store)
        if self.source and told == before:
            return
        fresh = {
            name: value
            for name, value in told.items()
            if name not in stamps or (name in before and before[name] == now.get(name))
        }
        if fresh:
            records.edit(store, self.type, self.id, fresh)
        if self.source:
            legacy_extra.add(store, TOLD, f"{self.type}/{self.id}", {self.source: told})

    def _told_before(self, store: Store) -> Mapping[str, FieldValue]:
        found = legacy_extra.find(store, TOLD, f"{self.type}/{self.id}") if self.source else None
        values: Mapping[str, FieldValue] = (found or {}).get(self.source, {})
        return values
