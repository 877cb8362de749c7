"""A migration of a million calls of older hooks, end to end, beside a bare msgspec + sqlite3 loop on the same lines.

    python -m bench.migration [--calls N] [--skip-postgres] [--json]

One source of N calls and one of N / 10, of a hundred lines about one that nobody can read. Each is brought in by
`metricsd migrate run` in a fresh home: survey, parse, rules, load, a second reading, the comparison, the check of the
check, the report. Prints calls and entries a second of the whole with the CPU seconds of all its processes, peak memory
of both sizes, the stages, and whether the result is the truth that was written beside the source; then the load stage
into PostgreSQL beside a bare COPY of the same number of rows. Limits: 20,000 entries/s, 150 MB, PostgreSQL 30,000 rows/s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.older_source import Truth, make_source

ENTRIES_PER_S_MIN = 20_000
RSS_MB_MAX = 150
RSS_GROWTH_MB_MAX = 30
ROWS_PER_S_MIN = 30_000
POSTGRES_CALLS = 200_000
BATCH = 5000
TIMEOUT_S = 1800


class FloorLine(msgspec.Struct):
    """What the bare loop reads of a line."""

    timestamp: str
    tool_name: str
    success: bool
    execution_time_ms: int
    session_id: str


def migrate(source: Path, home: Path) -> dict[str, Any]:
    """Bring a source in, in a fresh home; return the summary with the whole command's seconds."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "metricsd", "migrate", "run", str(source), "--accept-rejects", "--json"],
        env={**os.environ, "METRICSD_HOME": str(home)}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if not done.stdout:
        raise SystemExit(done.stderr)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return summary | {"command_s": time.perf_counter() - began, "cpu_s": cpu_s}


def is_true(home: Path, truth: Truth, summary: dict[str, Any]) -> bool:
    """Return whether store and summary say exactly what the source's truth says."""
    calls, sessions = summary["tool_events"], summary["sessions"]
    counts = (calls["loaded"], calls["rejected"], calls["merged"], calls["skipped"], sessions["loaded"])
    sql = (
        "SELECT t.text, count(*), sum(e.outcome != 0), sum(e.duration_ms) FROM event AS e JOIN term AS t ON t.id = e.tool"
        " GROUP BY t.text"
    )
    with contextlib.closing(sqlite3.connect(home / "state" / "store.db")) as db:
        stored = {name: tuple(numbers) for name, *numbers in db.execute(sql)}
    wanted = {name: (tool.count, tool.failures, tool.total_ms) for name, tool in truth.by_tool.items()}
    return counts == (truth.events, truth.bad_lines, truth.announced, 0, truth.sessions) and stored == wanted


def floor_per_s(source: Path, folder: Path) -> float:
    """Return the calls a second of a bare loop: decode what can be, insert it, nothing else."""
    decode = msgspec.json.Decoder(FloorLine).decode
    began, count = time.perf_counter(), 0
    with contextlib.closing(sqlite3.connect(folder / "floor.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(
            "CREATE TABLE event (id INTEGER PRIMARY KEY, at TEXT, tool TEXT, ok INTEGER, ms INTEGER, session TEXT)"
        )
        for some in _batches(source / "tool-metrics.jsonl"):
            rows = []
            for raw in some:
                with contextlib.suppress(msgspec.MsgspecError):
                    line = decode(raw)
                    rows.append((line.timestamp, line.tool_name, line.success, line.execution_time_ms, line.session_id))
            db.execute("BEGIN")
            db.executemany("INSERT INTO event (at, tool, ok, ms, session) VALUES (?, ?, ?, ?, ?)", rows)
            db.execute("COMMIT")
            count += len(rows)
    return count / (time.perf_counter() - began)


def _batches(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        batch: list[bytes] = []
        for raw in file:
            batch.append(raw)
            if len(batch) == BATCH:
                yield batch
                batch = []
        yield batch


def measure_postgres(folder: Path, calls: int) -> dict[str, Any]:
    """Return the rows a second of the load stage into PostgreSQL, and of a bare COPY of as many rows."""
    from metricsd.cli import migrate_database
    from metricsd.cli.migrate_run import DATABASE_BATCH
    from metricsd.clock import SystemClock
    from metricsd.cloud import tenants
    from metricsd.cloud.postgres import PostgresBackend
    from metricsd.config import Cloud, Sync
    from metricsd.migration.load_cloud import Cloud as Asked
    from metricsd.migration.load_cloud import CloudSink, Connection
    from metricsd.migration.model import Counts, Part
    from metricsd.migration.parse import Parser
    from metricsd.migration.people import CREATE, make_people
    from metricsd.migration.survey import survey
    from metricsd.migration.transform import Transform
    from metricsd.migration.work import Work
    from tests.postgres import own_cluster

    variable = "BENCH_MIGRATION_DSN"
    source = folder / "postgres"
    make_source(source, calls)

    async def make_tenant(url: str) -> None:
        backend = PostgresBackend(url, Cloud(), SystemClock())
        await backend.upgrade_control()
        await tenants.create_tenant(backend.directory, "team", SystemClock())
        await backend.close()

    with own_cluster(durable=True) as cluster:
        url = cluster.url()
        os.environ[variable] = url
        asyncio.run(make_tenant(url))
        work = Work(folder / "postgres.db")
        survey(work, [source], progress=lambda size: None)
        login = migrate_database.login(work, variable, "team", "ann")

        def connect(_url: str, _token: str, _settings: Sync) -> Asked:
            return migrate_database.connect(variable, "team", "ann", login.device_id)

        connection = Connection(login, Sync(), connect, bytes_max=migrate_database.REQUEST_BYTES_MAX)
        sink = CloudSink(
            connection, work, SystemClock(), batch=DATABASE_BATCH, label="bench", keep=lambda rejects: None,
            is_hooked=lambda planned: False,
        )  # fmt: skip
        transform = Transform(work, make_people(CREATE, None, None))
        counts, seconds = Counts(), 0.0
        for number, piece in enumerate(Parser(work).parts(), start=1):
            planned = [transform.plan(row, f"b.{number}") for row in piece.rows]
            began = time.perf_counter()
            counts += sink.take(Part("b", number, planned, piece.rejected, piece.after), lambda refused: 0).counts
            seconds += time.perf_counter() - began
        sink.close()
        work.close()
        rows = counts.tool_events.loaded + 2 * counts.sessions.loaded
        copied = asyncio.run(_copy_floor(url, rows))
    return {"rows": rows, "rows_per_s": round(rows / seconds), "bare_copy_rows_per_s": round(copied)}


async def _copy_floor(url: str, rows: int) -> float:
    import asyncpg

    db = await asyncpg.connect(url)
    await db.execute("CREATE TABLE bare (id bytea PRIMARY KEY, at bigint, tool text, session text, ms bigint)")
    records = [
        (number.to_bytes(16, "big"), number, f"tool{number % 9}", f"session{number // 60}", number % 5000)
        for number in range(rows)
    ]
    began = time.perf_counter()
    for start in range(0, rows, BATCH):
        await db.copy_records_to_table("bare", records=records[start : start + BATCH])
    seconds = time.perf_counter() - began
    await db.close()
    return rows / seconds


def main() -> int:
    """Measure, print, and return 1 if a limit was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--skip-postgres", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="metricsd-bench-"))
    try:
        found = _measure(folder, options.calls)
        if not options.skip_postgres:
            found["postgres"] = measure_postgres(folder, min(options.calls, POSTGRES_CALLS))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0 if not _missed(found) else 1


def _measure(folder: Path, calls: int) -> dict[str, Any]:
    found: dict[str, Any] = {"calls": calls}
    for name, count in (("small", calls // 10), ("large", calls)):
        source, home = folder / name, folder / f"{name}-home"
        truth = make_source(source, count, bad_percent=1.0)
        summary = migrate(source, home)
        stages = json.loads((Path(summary["report_dir"]) / "report.json").read_text())["stages"]
        entries = summary["tool_events"]["source"] + summary["sessions"]["source"]
        found[name] = {
            "calls": count, "entries": entries, "seconds": round(summary["command_s"], 2),
            "cpu_s": round(summary["cpu_s"], 2),
            "calls_per_s": round(count / summary["command_s"]), "entries_per_s": round(entries / summary["command_s"]),
            "peak_rss_mb": summary["peak_rss_mb"], "equal_to_truth": is_true(home, truth, summary), "ok": summary["ok"],
            "reason": summary["reason"], "stages": stages,
        }  # fmt: skip
        if name == "large":
            found["floor_calls_per_s"] = round(floor_per_s(source, folder))
        shutil.rmtree(home)
        shutil.rmtree(source)
    return found


def _missed(found: dict[str, Any]) -> list[str]:
    large, small = found["large"], found["small"]
    missed = []
    if not (large["equal_to_truth"] and small["equal_to_truth"] and large["ok"] and small["ok"]):
        missed.append("the result is not the truth")
    if large["entries_per_s"] < ENTRIES_PER_S_MIN:
        missed.append("entries/s")
    if large["peak_rss_mb"] > RSS_MB_MAX or large["peak_rss_mb"] - small["peak_rss_mb"] > RSS_GROWTH_MB_MAX:
        missed.append("memory")
    if "postgres" in found and found["postgres"]["rows_per_s"] < ROWS_PER_S_MIN:
        missed.append("PostgreSQL rows/s")
    return missed


def _print(found: dict[str, Any]) -> None:
    print("migration: older hooks' folder -> store, end to end")
    for name in ("small", "large"):
        one = found[name]
        print(
            f"  {one['calls']:>9,} calls  {one['seconds']:>7.2f} s (CPU {one['cpu_s']:.1f} s)  {one['calls_per_s']:>7,} calls/s"
            f"  {one['entries_per_s']:>7,} entries/s  {one['peak_rss_mb']:>6.1f} MB"
            f"  equal to the truth: {'yes' if one['equal_to_truth'] else 'NO'}  passed: {'yes' if one['ok'] else 'NO'}"
        )
        if one["reason"]:
            print(f"            {one['reason']}")
    for stage in found["large"]["stages"]:
        print(f"    {stage['name']:<10} {stage['seconds']:>7.2f} s")
    print(f"  floor: decode and insert alone  {found['floor_calls_per_s']:,} calls/s")
    if "postgres" in found:
        one = found["postgres"]
        print(
            f"  PostgreSQL, load stage  {one['rows_per_s']:,} rows/s  (bare COPY {one['bare_copy_rows_per_s']:,} rows/s)"
        )
    missed = _missed(found)
    print(f"  limits missed: {', '.join(missed)}" if missed else "  every limit holds")


if __name__ == "__main__":
    sys.exit(main())
