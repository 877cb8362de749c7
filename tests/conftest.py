"""Fixtures that every room uses: a temporary home, an open store, a clock that obeys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd.config import Paths, find_paths
from metricsd.store.connection import Store
from tests.fakes import FakeClock
from tests.postgres_fixtures import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A home under METRICSD_HOME, for this process and its children."""
    monkeypatch.setenv("METRICSD_HOME", str(tmp_path / "home"))
    return find_paths()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = Store.open(tmp_path / "state" / "store.db", clock=clock, backups=tmp_path / "state" / "backups")
    yield opened
    opened.close()
