"""Stable 128-bit event ids and the other identifiers.

An event id is a pure function of what does not change when a file is copied, restored or read again, so that every
replay is harmless. Layout (RFC 9562, UUID version 8): 48 bits of milliseconds, then 74 bits of BLAKE2b. The time
prefix keeps inserts at the right edge of the index; random ids cost 20 times the writes.
"""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from hashlib import blake2b, md5
from typing import NewType
from zlib import crc32

EventId = NewType("EventId", bytes)
DeviceId = NewType("DeviceId", str)

EVENT_ID_BYTES = 16
INSTALLATION_KEY_BYTES = 32
# Distinct (timestamp, fact) keys remembered per file. Two equal lines further apart than this many other lines,
# with the same timestamp, would be taken for one; eviction depends on the file's content alone.
OCCURRENCE_KEYS_MAX = 1024
_HASH_BYTES = 10
_PREFIX_MS_MAX = (1 << 48) - 1
_UUID_BITS = (8 << 76) | (0b10 << 62)
_HASH_MASK = ((1 << 80) - 1) & ~(0xF << 76) & ~(0b11 << 62)
# Copying an empty hash costs half of setting one up.
_empty_hash = blake2b(digest_size=_HASH_BYTES).copy


def new_installation_key() -> bytes:
    """Return the random key that makes this installation's capture ids its own."""
    return secrets.token_bytes(INSTALLATION_KEY_BYTES)


def new_device_id() -> DeviceId:
    """Return a random opaque device id of 32 hex characters."""
    return DeviceId(secrets.token_hex(16))


def user_uuid(user: str) -> str:
    """Return the id that the older API gave to a user's name, which its clients keep and compare.

    It has a UUID's layout and version 4, but is a hash of the name: the variant bits are whatever the hash has.
    """
    # Not for security: an identifier that old data holds cannot change its hash.
    h = md5(user.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    return f"{h[0:8]}-{h[8:12]}-4{h[12:15]}-{h[16:20]}-{h[20:32]}"


def _layout(ms: int, digest: bytes) -> EventId:
    # One integer and two masks cost a third less than slicing: version 8 and variant 10 overwrite six bits of hash.
    number = (ms << 80) | (int.from_bytes(digest, "big") & _HASH_MASK) | _UUID_BITS
    return EventId(number.to_bytes(EVENT_ID_BYTES, "big"))


def capture_id(second: int, name: str, line: bytes, installation_key: bytes) -> EventId:
    """Return the id of a capture: `second` as written by the hook, file name and bytes, keyed by the installation."""
    digest = blake2b(
        name.encode("utf-8", "surrogateescape") + b"\0" + line, digest_size=_HASH_BYTES, key=installation_key
    ).digest()
    return _layout(min(max(second, 0) * 1000, _PREFIX_MS_MAX), digest)


def line_id(fact: bytes, at_ms: int, occurrence: int) -> EventId:
    """Return the id of a line in a shared or foreign file.

    `fact` is what `line_fact()` made, `at_ms` the line's own timestamp (0 without one), `occurrence` how many equal
    facts with that timestamp the file held before. No device and no content takes part: the same folder on a new
    laptop gives the same ids.
    """
    hashed = _empty_hash()
    hashed.update(fact + occurrence.to_bytes(4, "big"))
    return _layout(at_ms if 0 <= at_ms <= _PREFIX_MS_MAX else min(max(at_ms, 0), _PREFIX_MS_MAX), hashed.digest())


def line_fact(
    form: str,
    stamp: str,
    own_id: str | None,
    session: str | None,
    kind: str,
    tool: str | None,
    outcome: str | None,
    duration_ms: int | None,
) -> bytes:
    """Return the bytes that identify a line's fact: its own id if it has one, else what happened.

    Parts are joined by the unit separator, which JSON strings cannot hold unescaped in our sources, with None kept
    apart from the empty string.
    """
    if own_id is not None:
        return f"{form}\x1f{stamp}\x1fid\x1f{own_id}".encode("utf-8", "surrogatepass")
    return f"{form}\x1f{stamp}\x1f{session}\x1f{kind}\x1f{tool}\x1f{outcome}\x1f{duration_ms}".encode(
        "utf-8", "surrogatepass"
    )


class Occurrences:
    """Counts equal facts of one file, in bounded memory.

    The least recently seen key is forgotten first, so the state is a function of the file's lines alone: reading
    the file again from its start gives the same numbers. Keys are 32-bit hashes; a collision only raises a number,
    the same way on every reading.
    """

    __slots__ = ("_counts",)

    def __init__(self, packed: bytes = b"") -> None:
        """Restore from `pack()`; raise ValueError when the bytes are not a whole number of entries."""
        if len(packed) % 8:
            raise ValueError("occurrence map is torn")
        words = memoryview(packed).cast("I") if packed else ()
        self._counts: OrderedDict[int, int] = OrderedDict(zip(words[::2], words[1::2], strict=True))

    def next(self, fact: bytes) -> int:
        """Return how often this fact was seen before, and count it."""
        key = crc32(fact)
        counts = self._counts
        seen = counts.pop(key, 0)
        counts[key] = seen + 1
        if len(counts) > OCCURRENCE_KEYS_MAX:
            counts.popitem(last=False)
        return seen

    def pack(self) -> bytes:
        """Return the state as bytes, oldest first, 8 bytes an entry in the machine's order."""
        flat = array("I")
        for key, count in self._counts.items():
            flat.append(key)
            flat.append(min(count, 0xFFFF_FFFF))
        return flat.tobytes()
