"""Fixtures of the cloud's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cloud.support import CloudUnderTest
from tests.fakes import FakeClock


@pytest.fixture
async def cloud(tmp_path: Path, clock: FakeClock) -> AsyncIterator[CloudUnderTest]:
    async with CloudUnderTest(tmp_path / "cloud", clock=clock) as made:
        yield made
