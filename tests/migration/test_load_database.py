"""An administrator's way into PostgreSQL: the same sink, with the database in place of the API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from metricsd.cli import migrate_database
from metricsd.clock import SystemClock
from metricsd.cloud import tenants
from metricsd.cloud.postgres import PostgresBackend
from metricsd.config import Cloud, Sync
from metricsd.errors import UsageError
from metricsd.migration.load_cloud import Cloud as LoadedCloud
from metricsd.migration.load_cloud import CloudSink, Connection
from metricsd.migration.model import Counts, Part, Rejected
from metricsd.migration.parse import Parser
from metricsd.migration.people import CREATE, make_people
from metricsd.migration.transform import Transform
from metricsd.migration.work import Work
from metricsd.store.quarantine import Reject
from tests.migration.sources import bring, call, surveyed, write_lines

VARIABLE = "TEST_MIGRATION_DSN"


async def make_tenant(url: str) -> None:
    backend = PostgresBackend(url, Cloud(), SystemClock())
    await backend.upgrade_control()
    await tenants.create_tenant(backend.directory, "team", SystemClock())
    await backend.close()


def load(work: Work, run: str) -> tuple[Counts, float]:
    """Load a source into the database; return the counts and the seconds that the sink took."""
    login = migrate_database.login(work, VARIABLE, "team", "ann")

    def connect(url: str, token: str, settings: Sync) -> LoadedCloud:
        return migrate_database.connect(VARIABLE, "team", "ann", login.device_id)

    kept: list[Reject] = []
    connection = Connection(login, Sync(), connect, bytes_max=migrate_database.REQUEST_BYTES_MAX)
    sink = CloudSink(
        connection, work, SystemClock(), batch=5000, label="test", keep=kept.extend, is_hooked=lambda planned: False
    )
    transform = Transform(work, make_people(CREATE, None, None))
    counts, seconds = Counts(), 0.0
    for number, piece in enumerate(Parser(work).parts(), start=1):
        planned = [transform.plan(row, f"{run}.{number}") for row in piece.rows]
        began = time.perf_counter()
        counts += sink.take(Part(run, number, planned, piece.rejected, piece.after), _no_ledger).counts
        seconds += time.perf_counter() - began
    sink.close()
    return counts, seconds


def _no_ledger(refused: Sequence[Rejected]) -> int:
    return 0


async def totals(url: str) -> tuple[int, int]:
    backend = PostgresBackend(url, Cloud(), SystemClock())
    try:
        tenant = await tenants.get_tenant(backend.directory, "team")
        async with backend.tenant(tenant) as store:
            stats = await store.stats()
    finally:
        await backend.close()
    return stats.events, stats.records


def run(coroutine: object) -> object:
    import asyncio

    return asyncio.run(coroutine)  # type: ignore[arg-type]


def test_history_goes_into_postgresql_once(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events by COPY under a device of their own; a second run, and a run of another folder with the same facts, add nothing."""
    monkeypatch.setenv(VARIABLE, postgres_url)
    run(make_tenant(postgres_url))
    many = [call(f"2026-01-05T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z", tool=f"T{n % 7}") for n in range(3000)]
    write_lines(tmp_path / "many" / "tool-metrics.jsonl", [*many, "torn"])
    bring("six", tmp_path / "many")
    counts, _ = load(surveyed(tmp_path / "1", tmp_path / "many"), "m1")
    assert (counts.tool_events.loaded, counts.tool_events.rejected, counts.sessions.loaded) == (3054, 1, 6)
    assert counts.reconciles
    before = run(totals(postgres_url))
    assert before == (3054 + 12, 6 + 1)
    again, _ = load(surveyed(tmp_path / "2", tmp_path / "many"), "m2")
    assert (again.total.loaded, again.total.skipped) == (0, counts.total.source - 1)
    assert run(totals(postgres_url)) == before


def test_a_dsn_that_is_none_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named, its value is not: it may hold a password."""
    monkeypatch.setenv(VARIABLE, "mysql://ann:secret@host/db")
    with pytest.raises(UsageError, match=VARIABLE) as refused:
        migrate_database.dsn_of(VARIABLE)
    assert "secret" not in str(refused.value)
