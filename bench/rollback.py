"""What taking a migration back costs: all of it, its undoing, and one tool of four, beside a bare DELETE of the rows.

    python -m bench.rollback [--events N] [--json]

The store holds N imported events in parts of 5,000, of sessions of 100 calls whose records the import made, and some
that hooks captured. Limit: 60 s for all of it at a million. The floor is one DELETE of the same events, undone again: what it
would cost without totals, records, journal and proof. Memory is the growth of the whole process, beyond what it had.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from metricsd.ids import line_id
from metricsd.migration.memory import peak_rss_mb
from metricsd.model import Event
from metricsd.store import events, imports, rollbacks
from metricsd.store.choosing import Choice
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.store.imports import Batch, Entry, Progress
from metricsd.store.rollbacks import Wanted
from metricsd.store.suggestions import Suggestion

T = TypeVar("T")

EVENTS = 1_000_000
PART = 5000
PER_SESSION = 100
TOOLS = ("Bash", "Read", "Edit", "Grep")
FULL_S_MAX = 60.0
START_US = 1_700_000_000_000_000
STEP_US = 60_000_000


def fact(number: int, batch: str | None) -> Identified:
    """Return event `number`."""
    at = START_US + number * STEP_US
    event = Event(
        at=at, kind="tool_used", name="PostToolUse", app="legacy", session=f"s{number // PER_SESSION}",
        tool=TOOLS[number % len(TOOLS)], outcome="ok", duration_ms=number % 5000, batch=batch,
    )  # fmt: skip
    return Identified(line_id(b"%d" % number, at // 1000, 0), event)


def fill(store: Store, count: int) -> None:
    """Import `count` events, and capture a hundredth of that."""
    for part, start in enumerate(range(0, count, PART), start=1):
        batch = f"m.{part}"
        entries = [entry(number, batch) for number in range(start, min(start + PART, count))]
        imports.take(
            store, Batch("m", part, batch, "bench", "bench"), entries,
            lambda _, part=part: (Progress(part, b"", b"", 0), [], b"{}"),  # type: ignore[misc]
        )  # fmt: skip
    with store.transaction():
        items = [fact(count + number, None) for number in range(count // 100)]
        events.insert(store, items, device=events.own_device(store))


def entry(number: int, batch: str) -> Entry:
    """Return the entry of event `number`; the first of a session brings its score."""
    beside = []
    if number % PER_SESSION == 0:
        beside.append(Suggestion("session", f"legacy/s{number // PER_SESSION}", {"score": 50}))
    return Entry([fact(number, batch)], beside)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def floor(store: Store) -> float:
    """Return the seconds that a bare DELETE of the imported events takes; it is undone."""
    store.db.execute("BEGIN IMMEDIATE")
    _, seconds = timed(lambda: store.db.execute("DELETE FROM event WHERE batch IS NOT NULL"))
    store.db.execute("ROLLBACK")
    return seconds


def main() -> int:
    """Print the figures; return 1 if the limit was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store.db")
        _, filled_s = timed(lambda: fill(store, options.events))
        bare_s = floor(store)
        before = peak_rss_mb()
        full, full_s = timed(lambda: rollbacks.run(store, Wanted("m")))
        back, back_s = timed(lambda: rollbacks.run(store, Wanted("m", undo=full.id)))
        grown = peak_rss_mb() - before
        some, some_s = timed(lambda: rollbacks.run(store, Wanted("m", choice=Choice(tools=TOOLS[:1]))))
        grown_some = peak_rss_mb() - before
        store.close()
    assert full.events == back.events == options.events, (full.events, back.events)
    found = {
        "events": options.events,
        "records": full.records,
        "filled_s": round(filled_s, 1),
        "floor_delete_s": round(bare_s, 2),
        "full_s": round(full_s, 2),
        "undone_s": round(back_s, 2),
        "chosen_events": some.events,
        "chosen_s": round(some_s, 2),
        "memory_mib": round(grown, 1),
        "memory_chosen_mib": round(grown_some, 1),
        "full_s_max": FULL_S_MAX,
    }
    if options.json:
        print(json.dumps(found))
    else:
        print(f"rollback of {options.events:,} events and {full.records:,} records")
        print(f"  floor: a bare DELETE of these rows        {bare_s:8.2f} s")
        print(f"  all of it, proven                         {full_s:8.2f} s   (at most {FULL_S_MAX:.0f} s)")
        print(f"  taken back again                          {back_s:8.2f} s")
        print(f"  one tool of four, {some.events:>9,} events       {some_s:8.2f} s")
        print(f"  memory beyond what filling it took        {grown:8.1f} MiB, with the choice {grown_some:.1f} MiB")
    return 0 if full_s <= FULL_S_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
