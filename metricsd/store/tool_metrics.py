"""Tool metrics: calls that arrive already added up, as an older tool noted them; one record each.

A call is kept either as an event or inside a tool metric, never both; reports add the two. A tool metric is a record
like any other: it has stamps, syncs, and can conflict. Functions that write run inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from metricsd import fields
from metricsd.errors import LineRejected
from metricsd.protocol import FieldValue
from metricsd.store import records
from metricsd.store.connection import Store
from metricsd.store.records import Version

TYPE = "tool_metric"
_KEY_BYTES = 16
_COUNT = "SELECT count(*) FROM record WHERE type = 'tool_metric' AND deleted = 0"


def record_id(source: str, key: str) -> str:
    """Return the id of what `source` (a format's name) calls `key`: the same line gives the same id on every device.

    The key is hashed, because an older tool's own ids may hold names and paths.
    """
    return f"{source}/{blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=_KEY_BYTES).hexdigest()}"


def put(store: Store, metric_id: str, values: Mapping[str, FieldValue]) -> Version:
    """Create a tool metric, or change fields of one (None clears); values equal to what is there change nothing.

    Raises LineRejected for a field that tool metrics do not have, or a value that it cannot have.
    """
    for name, value in values.items():
        wrong = fields.problem(TYPE, name, value)
        if wrong is not None:
            raise LineRejected("bad_record", f"{name}: {wrong}")
    return records.edit(store, TYPE, metric_id, values)


def delete(store: Store, metric_id: str) -> Version:
    """Delete a tool metric; its tombstone syncs."""
    return records.edit(store, TYPE, metric_id, {}, delete=True)


def find(store: Store, metric_id: str) -> Version | None:
    """Return a tool metric; None when there is none, or when it was deleted."""
    record = records.get(store, TYPE, metric_id)
    return None if record is None or record.version.deleted else record.version


def count(store: Store) -> int:
    """Return how many tool metrics there are."""
    return int(store.db.execute(_COUNT).fetchone()[0])
