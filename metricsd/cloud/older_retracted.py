"""Which of a user's events do not count because their import was retracted, as a plan for a step of the fold.

The records decide, whenever they came: each step asks for those of its own batches. Selections are read page by page,
and of what they name only the step's own events are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metricsd import import_batch
from metricsd.cloud.older_plans import Between, Plan, Records, Words
from metricsd.protocol import RecordState

BATCHES_PER_QUERY = 500
SELECTIONS_PER_PAGE = 100
"""Selections that are held at once: each is up to 16 KiB."""


def retracted(imported: Sequence[tuple[bytes, int]]) -> Plan[set[bytes]]:
    """Return those of some events, given as (id, term of the batch), that an inactive record covers."""
    words = yield Words({term for _, term in imported})
    ids_of: dict[str, set[bytes]] = {}
    for event_id, term in imported:
        ids_of.setdefault(import_batch.base_of(words[term]), set()).add(event_id)
    batches = sorted(ids_of)
    out: set[bytes] = set()
    for start in range(0, len(batches), BATCHES_PER_QUERY):
        some = batches[start : start + BATCHES_PER_QUERY]
        found: Mapping[str, RecordState] = yield Records(import_batch.TYPE, some)
        for batch in some:
            record = found.get(batch)
            if record is not None and import_batch.is_inactive(record.fields, deleted=record.deleted):
                out |= ids_of[batch]
            else:
                out |= yield from _selected(batch, ids_of[batch])
    return out


def _selected(batch: str, ids: set[bytes]) -> Plan[set[bytes]]:
    """Return those of a batch's events that its inactive selections name."""
    after, before = import_batch.selections_of(batch)
    out: set[bytes] = set()
    while True:
        page: Sequence[RecordState] = yield Between(import_batch.TYPE, after, before, SELECTIONS_PER_PAGE)
        for record in page:
            if import_batch.is_inactive(record.fields, deleted=record.deleted):
                out |= ids.intersection(import_batch.named_by(record.fields))
        if len(page) < SELECTIONS_PER_PAGE:
            return out
        after = page[-1].id
