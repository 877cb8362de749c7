"""The opaque texts of the wire: event ids, and the cursors and revisions that name a place in a tenant's history.

A cursor or revision is `<change number>-<nonce of its transaction>`. The number alone would mean something else after
a database was restored from an older copy and went on; the nonce tells.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from metricsd.ids import EVENT_ID_BYTES

_REVISION = re.compile(r"([0-9]{1,19})-([0-9a-f]{16})")
_EVENT_ID = re.compile(r"[0-9a-fA-F]{32}")
_NUMBER_MAX = (1 << 63) - 1
_MALFORMED_KEY_BYTES = EVENT_ID_BYTES + 4


def revision_text(change: int, nonce: int) -> str:
    """Return the wire form of a cursor or revision."""
    return f"{change}-{nonce:016x}"


def parse_revision(text: str) -> tuple[int, int] | None:
    """Return (change, nonce), or None for a text that no history of ours can have made."""
    found = _REVISION.fullmatch(text)
    if found is None:
        return None
    change, nonce = int(found[1]), int(found[2], 16)
    return (change, nonce) if 0 < change <= _NUMBER_MAX and nonce <= _NUMBER_MAX else None


def is_event_id(text: str) -> bool:
    """Return whether this is an event id in hex."""
    return _EVENT_ID.fullmatch(text) is not None


def event_key(text: str) -> bytes:
    """Return what a stream's position is bound under: the 16 bytes of an id, or a longer hash of a malformed one."""
    if is_event_id(text):
        return bytes.fromhex(text)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_MALFORMED_KEY_BYTES).digest()


def event_id_text(key: bytes, offered: str) -> str:
    """Return a bound id in hex. A malformed one equals what is `offered`, or nobody can say it ("")."""
    if len(key) == EVENT_ID_BYTES:
        return key.hex()
    return offered if event_key(offered) == key else ""
