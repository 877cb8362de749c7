"""What a name, an id and a number may look like before it is kept.

A field that should hold an identifier can hold anything: a tool may put a sentence into it, and a sentence may
hold a secret. So every kept string passes one of these gates, which let only the alphabet of identifiers through.
Pure functions, cached where the same words come again and again.
"""

from __future__ import annotations

import math
import re
import unicodedata
from functools import lru_cache
from hashlib import blake2b

from metricsd.model import NAME_CHARS_MAX

OTHER = "other"
"""Stands for a word that is not on its closed list, so that the count stays true without the word."""
INTEGER_MAX = (1 << 63) - 1

_HASH_BYTES = 8
_NAMES_CACHED = 4096
_is_opaque = re.compile(r"[A-Za-z0-9._:-]{1,200}").fullmatch
# A model may have one provider in front (`openai/gpt-5`), a date (`@20250514`) and a window (`[1m]`) behind.
_is_model = re.compile(r"(?:[A-Za-z0-9_-]{1,40}/)?[A-Za-z0-9_.:@-]{1,150}(?:\[[A-Za-z0-9]{1,8}\])?").fullmatch
_DROPPED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def opaque_id(text: str | None) -> str | None:
    """Return `text` if it looks like an opaque id, its short hash if it does not, None for nothing.

    The hash keeps equal ids equal, so that a session with a strange id is still one session.
    """
    if not text:
        return None
    if _is_opaque(text) is not None:
        return text
    return f"hash-{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=_HASH_BYTES).hexdigest()}"


@lru_cache(maxsize=_NAMES_CACHED)
def _cached_id(text: str) -> str | None:
    return opaque_id(text)


def repeated_id(text: str | None) -> str | None:
    """Return `opaque_id(text)` for an id that many lines share, such as a session's."""
    if not text or len(text) > NAME_CHARS_MAX:
        return opaque_id(text)
    return _cached_id(text)


@lru_cache(maxsize=_NAMES_CACHED)
def _known_name(text: str) -> str:
    return text if _is_opaque(text) is not None else OTHER


def plain_name(text: str | None) -> str | None:
    """Return the name of a tool or an agent: `text` if it is an identifier, else `other`; None for nothing."""
    if not text:
        return None
    return _known_name(text) if len(text) <= NAME_CHARS_MAX else OTHER


def model_name(text: str | None) -> str | None:
    """Return the name of a model, `other` if it does not look like one, None for nothing."""
    if not text:
        return None
    return text if len(text) <= NAME_CHARS_MAX and _is_model(text) is not None else OTHER


def clean_text(text: str) -> str:
    """Return `text` without control, format and separator characters, cut to the longest name that is kept."""
    text = text[: 4 * NAME_CHARS_MAX]
    if not text.isprintable():
        text = "".join(c for c in text if unicodedata.category(c) not in _DROPPED)
    return text.strip()[:NAME_CHARS_MAX]


def whole_number(value: object) -> int | None:
    """Return `value` as an integer of 63 bits, floats rounded; None for negative, greater and other things."""
    if type(value) is float:
        value = round(value) if math.isfinite(value) else None
    if type(value) is int and 0 <= value <= INTEGER_MAX:
        return value
    return None
