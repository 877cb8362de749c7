"""Fixtures that every room uses: a temporary home, an open store, a clock that obeys; and how laws are tried.

Laws are about results, not about how busy the machine is: an example has no deadline. In CI the same commit sees the
same examples; everybody's own runs, and `make soak`, look for new ones.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from metricsd.config import Paths, find_paths
from metricsd.store.connection import Store
from tests.fakes import FakeClock
from tests.postgres_fixtures import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]

settings.register_profile(
    "any_machine",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("any_machine")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background so; programs of these tests would inherit it and never hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    """Undo what a command that was called in this process set up: its level would hide what the next test looks for.

    structlog's own default draws a picture of each traceback, which takes longer than most tests.
    """
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )


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
