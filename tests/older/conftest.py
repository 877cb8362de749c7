"""A home with the older hooks' folders for every test here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.older.support import Older


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Older]:
    rig = Older(tmp_path)
    yield rig
    rig.close()
