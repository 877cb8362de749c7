"""Values that a file tells of a record, for the fields that nobody has set.

A person's edit, on whichever device, always stands over what an older program noted: a field that has a stamp is
left as it is, and a deleted record stays deleted. So a file may be read any number of times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from metricsd import fields
from metricsd.protocol import FieldValue
from metricsd.store import records
from metricsd.store.connection import Store


class Suggestion(NamedTuple):
    """Values for fields of one record. A value that the field cannot have is passed over."""

    type: str
    id: str
    values: Mapping[str, FieldValue]

    def put(self, store: Store) -> None:
        """Set the fields that have never been set, inside the caller's transaction."""
        known = records.get(store, self.type, self.id)
        if known is not None and known.version.deleted:
            return
        stamps = known.version.stamps if known is not None else {}
        fresh = {
            name: value
            for name, value in self.values.items()
            if name not in stamps and value is not None and fields.problem(self.type, name, value) is None
        }
        if fresh:
            records.edit(store, self.type, self.id, fresh)
