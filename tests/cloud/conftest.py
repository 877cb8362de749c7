"""Fixtures of the cloud's tests: whoever asks for `cloud` is run on SQLite and on PostgreSQL.

What a backend promises is tested once, for both. A test that looks into SQLite's files, or at nothing that a database
could change, is marked `only_sqlite`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cloud.support import CloudUnderTest
from tests.fakes import FakeClock

BACKENDS = ("sqlite", "postgres")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cloud_place" in metafunc.fixturenames:
        only_sqlite = metafunc.definition.get_closest_marker("only_sqlite") is not None
        metafunc.parametrize("cloud_place", BACKENDS[:1] if only_sqlite else BACKENDS, indirect=True)


@pytest.fixture
def cloud_place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new cloud lies: a folder, or the URL of an empty database."""
    if request.param == "sqlite":
        return tmp_path / "cloud"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def cloud(cloud_place: Path | str, clock: FakeClock) -> AsyncIterator[CloudUnderTest]:
    async with CloudUnderTest(cloud_place, clock=clock) as made:
        yield made
