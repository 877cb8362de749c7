"""How deep and how wide a JSON body is, seen before it is decoded.

A decoder makes an object of every value: a hundred bytes each, so a body that is within its length could still fill
the memory, or nest deeper than the stack. What stands outside strings is looked at here, piece by piece, without
recursion and without holding more than a piece; whether it is JSON at all is left to the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from metricsd.cloud.problems import refuse, too_large
from metricsd.config import Cloud

VALUES_PER_ITEM = 64
"""An event has at most 24 fields and 16 in `extra`, a record some more; what nobody knows yet has room."""
VALUES_FEW = 20_000
"""So few values need no closer look: they are two megabytes at most."""
PIECE_BYTES = 64 * 1024
# +1 for what opens, -1 for what closes, 0 for a comma.
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1, ord(","): 0}
_STEP = [_STEPS.get(byte, 0) for byte in range(256)]
_BRACKETS = bytes.maketrans(b"[{]}", b"(())")
_NEITHER = bytes(set(range(256)) - set(_STEPS) - {ord('"')})
"""What is neither structure nor a quote."""


def check_shape(body: bytes, settings: Cloud) -> None:
    """Raise 400 for a body that nests deeper than `depth_max`, 413 for one with far more values than items need."""
    values_max = settings.items_max * VALUES_PER_ITEM
    opened, commas = body.count(b"[") + body.count(b"{"), body.count(b",")
    if opened <= settings.depth_max and opened + commas <= min(VALUES_FEW, values_max):
        return
    depth = values = 0
    for structure in _structure(body):
        depth, peak = _depths(structure, depth, settings.depth_max)
        if peak > settings.depth_max:
            raise refuse(400, "too_deep", f"more than {settings.depth_max} levels", limit="depth_max")
        # Each value but the first of its list or object follows a comma.
        values += len(structure) - structure.count(b"]") - structure.count(b"}")
        if values > values_max:
            raise too_large("values_max", values_max)


def _depths(structure: bytes, before: int, depth_max: int) -> tuple[int, int]:
    """Return the depth behind a piece, and the highest in it, or a bound of it that is within the limit.

    Pairs are taken out from the innermost outwards, which costs a tenth of a look at each byte; what is left of a flat
    body's piece after a level or two is next to nothing.
    """
    brackets, levels = structure.translate(_BRACKETS, b","), 0
    while levels <= depth_max and b"()" in brackets:
        brackets = brackets.replace(b"()", b"")
        levels += 1
    opened = brackets.count(b"(")
    if before + opened + levels <= depth_max:
        return before + 2 * opened - len(brackets), before + opened + levels
    depths = list(accumulate(map(_STEP.__getitem__, structure), initial=before))
    return depths[-1], max(depths)


def _structure(body: bytes) -> Iterator[bytes]:
    """Yield the brackets and commas outside strings, piece by piece."""
    inside, rest = False, b""
    for start in range(0, len(body), PIECE_BYTES):
        piece = rest + body[start : start + PIECE_BYTES]
        # An escape may be cut in two: an odd backslash at the end goes with what follows it.
        slashes = len(piece) - len(piece.rstrip(b"\\"))
        rest = b"\\" if slashes % 2 else b""
        piece = piece[: len(piece) - len(rest)]
        # Escaped backslashes go first, then escaped quotes; what is left of quotes alternates between start and end.
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        # Two quotes side by side, most strings by now, change nothing for what stands around them.
        parts = piece.translate(None, _NEITHER).replace(b'""', b"").split(b'"')
        yield b"".join(parts[1 if inside else 0 :: 2])
        inside ^= len(parts) % 2 == 0
