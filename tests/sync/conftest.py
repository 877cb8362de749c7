"""Fixtures of the sync tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes import FakeClock
from tests.sync.world import World


@pytest.fixture
async def world(tmp_path: Path, clock: FakeClock) -> AsyncIterator[World]:
    made = World(tmp_path, clock)
    await made.start()
    yield made
    await made.close()
