"""What an `import_batch` record says about which imported events count: read alike by the store and the cloud.

A record with the name of a batch covers all of its events. A *selection*, `<batch>!<hash>`, names some of them in `only`
and covers those. An event counts unless an inactive record covers it.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping

from metricsd.ids import EVENT_ID_BYTES

TYPE = "import_batch"
ACTIVE, ONLY = "active", "only"
SELECTION = "!"
"""Between a batch and the hash of a selection; no batch has it."""
_BEHIND = chr(ord(SELECTION) + 1)


def base_of(name: str) -> str:
    """Return the batch that a batch or a selection belongs to: what travels with an event."""
    return name.partition(SELECTION)[0]


def selections_of(batch: str) -> tuple[str, str]:
    """Return the bounds, both exclusive, of the names of a batch's selections."""
    return batch + SELECTION, batch + _BEHIND


def is_inactive(fields: Mapping[str, object], *, deleted: bool) -> bool:
    """Return whether a record says that what it covers does not count; what is no flag says nothing."""
    active = fields.get(ACTIVE)
    return deleted or (isinstance(active, int | float) and active == 0)


def named_by(fields: Mapping[str, object]) -> list[bytes]:
    """Return the ids that a selection names; none for one that cannot be read, because it may come from anywhere."""
    only = fields.get(ONLY)
    try:
        packed = b64decode(only, validate=True) if isinstance(only, str) else b""
    except (binascii.Error, ValueError):
        return []
    if len(packed) % EVENT_ID_BYTES:
        return []
    return [packed[start : start + EVENT_ID_BYTES] for start in range(0, len(packed), EVENT_ID_BYTES)]
