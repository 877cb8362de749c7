"""The recordings of the older system, and what counts as the same answer."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "golden"
THROWS = "<throws>"


def recordings(name: str) -> list[dict[str, Any]]:
    """Return the recordings of one file, in order."""
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


def is_like(expected: object, found: object) -> bool:
    """Return whether an answer is the recorded one; placeholders stand for any value of their kind."""
    match expected:
        case "<uuid>":
            return isinstance(found, str) and str(uuid.UUID(found)) == found
        case "<timestamp>":
            return isinstance(found, str) and bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found))
        case dict():
            return (
                isinstance(found, dict)
                and found.keys() == expected.keys()
                and all(is_like(value, found[key]) for key, value in expected.items())
            )
        case list():
            return (
                isinstance(found, list)
                and len(found) == len(expected)
                and all(is_like(one, other) for one, other in zip(expected, found, strict=True))
            )
        case _:
            return type(expected) is type(found) and expected == found
