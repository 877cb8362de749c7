"""What a conflict costs: the decision alone, and with its record and log row written, beside a bare sqlite3 update.

    python -m bench.resolve [--conflicts N] [--json]

Every conflict is a session that both sides changed: two texts that clash, tags to be joined, a field of one side.
Limits: 50 us for a decision at p99, 250 us with its log row, amortised over batches. The floor is one UPDATE of a
log row in transactions of the same size, in the same database.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from metricsd import conflict
from metricsd.config import find_paths
from metricsd.hlc import Stamp
from metricsd.policy import Layers, places_of
from metricsd.protocol import FieldValue, RecordState
from metricsd.store import conflict_log, records
from metricsd.store.connection import Store
from metricsd.sync.plugins import Pool
from metricsd.sync.resolving import BATCH, Found, Resolver

T = TypeVar("T")

DECISION_P99_US_MAX = 50.0
WRITTEN_US_MAX = 250.0
CONFLICTS = 100_000


async def inline(fn: Callable[..., T], /, *args: object) -> T:
    """Run a function of the store where it is called."""
    return fn(*args)


def fill(store: Store, count: int) -> None:
    """Open `count` conflicts."""
    base = Stamp(1_790_000_000_000, 0, "two").text()
    later = Stamp(1_790_000_001_000, 0, "two").text()
    for start in range(0, count, BATCH):
        with store.transaction():
            for number in range(start, min(start + BATCH, count)):
                name = f"claude-code/{number:032x}"
                old: dict[str, FieldValue] = {"description": "base", "tags": ["a", "b"], "score": 1}
                records.pulled(store, _state(name, "1-x", old, base))
                records.edit(store, "session", name, {"description": "here", "tags": ["b", "c"]})
                records.pulled(
                    store, _state(name, "2-x", {"description": "there", "tags": ["a", "d"], "score": 7}, later)
                )


def _state(name: str, rev: str, fields: dict[str, FieldValue], stamp: str) -> RecordState:
    return RecordState(
        type="session", id=name, rev=rev, device="two", fields=fields, stamps=dict.fromkeys(fields, stamp)
    )


def decide(store: Store, resolver: Resolver, policies: Layers, count: int) -> list[float]:
    """Return the CPU time of each decision in microseconds, sorted: a p99 of wall time would measure the neighbours."""
    fresh = Stamp(1_790_000_900_000, 0, "one")
    in_force = policies.current()
    entries = records.in_conflict(store, min(count, 20_000))
    times = []
    gc.disable()
    try:
        for entry in entries:
            began = time.thread_time_ns()
            resolver.decide(Found(entry, None), in_force, fresh)
            times.append((time.thread_time_ns() - began) / 1000)
    finally:
        gc.enable()
    return sorted(times)


def floor(store: Store, count: int) -> float:
    """Return the microseconds of a bare update of one log row, in transactions of BATCH rows."""
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        with store.transaction(full=True) as db:
            for number in range(start + 1, min(start + BATCH, count) + 1):
                db.execute("UPDATE conflict_log SET rule = ? WHERE id = ?", (str(number), number))
    return (time.perf_counter() - began) / count * 1e6


def measure(count: int) -> dict[str, float]:
    """Return the figures in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        paths = find_paths({"METRICSD_HOME": folder})
        store = Store.open(Path(folder) / "store.db")
        policies = Layers(places_of(paths, system=Path(folder) / "none"))
        resolver = Resolver(store, inline, policies, Pool())
        fill(store, count)
        bare = floor(store, count)
        times = decide(store, resolver, policies, count)
        began = time.perf_counter()
        done = asyncio.run(resolver.resolve_open())
        written = (time.perf_counter() - began) / count * 1e6
        if done.total() != count or conflict_log.count_open(store):
            raise AssertionError(f"{done.total()} of {count} conflicts were resolved")
        store.close()
    return {
        "decision_p50_us": round(times[len(times) // 2], 1),
        "decision_p99_us": round(times[len(times) * 99 // 100], 1),
        "written_us": round(written, 1),
        "bare_update_us": round(bare, 1),
    }


def main() -> int:
    """Print the figures and return 1 if a limit is missed."""
    # One line a batch belongs in a daemon's log, not between the figures.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conflicts", type=int, default=CONFLICTS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.conflicts)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"resolving {arguments.conflicts} conflicts, strategy {conflict.Strategy.MERGE_FIELDS}")
        print(f"  decision, p50          {figures['decision_p50_us']:>8.1f} us")
        print(f"  decision, p99          {figures['decision_p99_us']:>8.1f} us   (limit {DECISION_P99_US_MAX:g})")
        print(f"  with record and log    {figures['written_us']:>8.1f} us   (limit {WRITTEN_US_MAX:g})")
        print(f"  floor: bare update     {figures['bare_update_us']:>8.1f} us")
    return int(figures["decision_p99_us"] > DECISION_P99_US_MAX or figures["written_us"] > WRITTEN_US_MAX)


if __name__ == "__main__":
    sys.exit(main())
