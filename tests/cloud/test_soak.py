"""The memory of a process stays flat however long it is pushed to."""

from __future__ import annotations

import pytest

from bench.cloud import soak

CI_MINUTES = 0.15


@pytest.mark.parametrize("minutes", [CI_MINUTES, pytest.param(10.0, marks=pytest.mark.soak)])
async def test_memory_is_flat_under_load(minutes: float) -> None:
    """Four devices push batches of 50 events without pause; what grows after the caches are full would be a leak."""
    assert await soak(minutes) == 0
