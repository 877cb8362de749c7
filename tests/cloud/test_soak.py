"""The memory of a process stays flat however long it is pushed to, on either database."""

from __future__ import annotations

import pytest

from bench import cloud, postgres

SOAKS = {"sqlite": cloud.soak, "postgres": postgres.soak}
CI_MINUTES = 0.1
SOAK_MINUTES = 10.0


@pytest.mark.parametrize("database", SOAKS)
@pytest.mark.parametrize("minutes", [CI_MINUTES, pytest.param(SOAK_MINUTES, marks=pytest.mark.soak)])
async def test_memory_is_flat_under_load(database: str, minutes: float) -> None:
    """Four devices push batches of 50 events without pause; what grows after the caches are full would be a leak."""
    assert await SOAKS[database](minutes) == 0
