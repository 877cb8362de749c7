"""Known secret fields in JSON that is kept as it came: their values are replaced before anything is written."""

from __future__ import annotations

import re

_SECRET_FIELD = re.compile(
    rb'("[^"]{0,64}(?:token|secret|password|passwd|api_?key|authorization|credential|private_?key|cookie)[^"]{0,64}"\s*:\s*)"(?:[^"\\]|\\.)*"',
    re.IGNORECASE,
)


def scrub(data: bytes) -> bytes:
    """Return the bytes with the values of known secret fields replaced."""
    return _SECRET_FIELD.sub(rb'\1"[scrubbed]"', data)
