"""docs/reliability.md names a test in every row; each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[^`:]+)(?:::([^`]+))?`")


def test_every_test_that_the_page_names_exists() -> None:
    """A promise whose test was renamed or removed is found here."""
    found = NAMED.findall((ROOT / "docs" / "reliability.md").read_text())
    assert [f"{path}::{name}" for path, name in found if not _exists(ROOT / path, name)] == []
    assert len(found) >= 10


def _exists(file: Path, name: str) -> bool:
    """Return whether a file defines `test_x`, or `TestClass` and below it `test_x`; without a name, whether it is there."""
    if not file.exists():
        return False
    below = file.read_text() if name else ""
    for part in name.split("::") if name else ():
        found = re.search(rf"^ *(?:async )?(?:def|class) {re.escape(part.partition('[')[0])}\b", below, re.MULTILINE)
        if found is None:
            return False
        below = below[found.end() :]
    return True
