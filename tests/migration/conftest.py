"""Fixtures of the migration's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.migration import sources


@pytest.fixture(autouse=True)
def closed_databases() -> Iterator[None]:
    """Close the databases of runs behind each test: later versions of Python warn of those that are left open."""
    yield
    while sources.OPENED:
        sources.OPENED.pop().close()
