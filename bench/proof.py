"""What the proof of a migration costs, part by part: `python -m bench.proof [--calls N] [--json]`.

Each part alone, on one core, in CPU seconds, beside a floor of the same run that does as little as can be: the rules
beside a loop that only looks at each row, the second reader beside bare `json.loads` of the same lines, the matching of
both sides beside a dictionary, and the seconds of 1,000 faults put in on purpose. Limit: 100,000 rows/s through the rules.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from bench.older_source import make_source
from metricsd.migration.compare import Comparer
from metricsd.migration.digest import new_key
from metricsd.migration.model import Planned, SourceFile
from metricsd.migration.parse import Parser
from metricsd.migration.people import CREATE, make_people
from metricsd.migration.second.files import File
from metricsd.migration.second.reader import Reader, Task
from metricsd.migration.second_process import as_told
from metricsd.migration.sensitivity import sample
from metricsd.migration.sensitivity.measure import FAULTS, Bench, measure
from metricsd.migration.side import Side
from metricsd.migration.survey import survey
from metricsd.migration.transform import Transform
from metricsd.migration.validate import Validator
from metricsd.migration.work import Work

RULES_ROWS_PER_S_MIN = 100_000
NOW_US = 1_800_000_000_000_000


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a piece of work, and what it returned."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def rules(work: Work) -> dict[str, float]:
    """Return rows a second through the rules, and through a loop that only looks at them."""
    transform = Transform(work, make_people(CREATE, None, None))
    validator = Validator(NOW_US, find_session=work.span)
    rows, seconds, floor = 0, 0.0, 0.0
    for piece in Parser(work).parts():
        planned = [transform.plan(row, "bench.1") for row in piece.rows]
        rows += len(planned)
        seconds += timed(partial(validator.check, planned))[0]
        floor += timed(partial(look, planned))[0]
    return {"rules_rows_per_s": rows / seconds, "rules_floor_rows_per_s": rows / floor, "rows": rows}


def look(planned: list[Planned]) -> int:
    """Do the least that a rule could: look at one field of each row."""
    return sum("tool_name" in one.row.raw for one in planned)


def second(files: list[SourceFile], folder: Path) -> tuple[dict[str, float], Reader]:
    """Return lines a second of the second reader, and of `json.loads` alone."""
    told = [File(*as_told(number, file)) for number, file in enumerate(files) if file.kind.value != "ignored"]
    reader = Reader(folder, Task(new_key().hex(), NOW_US))
    seconds, reading = timed(lambda: reader.read(told))
    entries = reading.calls + reading.announced + reading.notes
    lines = (
        next(path for file in told if (path := Path(file.path)).name == "tool-metrics.jsonl").read_bytes().split(b"\n")
    )
    floor, parsed = timed(lambda: sum(is_json(line) for line in lines))
    return {
        "second_reader_entries_per_s": entries / seconds,
        "json_loads_lines_per_s": parsed / floor,
        "second_reader_rows": reading.rows,
    }, reader


def is_json(line: bytes) -> bool:
    """Parse a line and drop it."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def matching(rows: int, folder: Path) -> dict[str, float]:
    """Return rows a second of matching two equal sides, and of putting as many into a dictionary."""
    random, one, other = Random(1), Side(folder / "one"), Side(folder / "other")
    made = [(random.getrandbits(64), random.getrandbits(64)) for _ in range(rows)]
    for side in (one, other):
        cell = side.number(("event", 1, "Bash"))  # type: ignore[arg-type]
        for identity, row_hash in made:
            side.add(identity, row_hash, cell, 1)
    comparer = Comparer()
    seconds, _ = timed(lambda: comparer.rows(one, other))
    floor, _ = timed(lambda: len(dict(made)))
    return {"matched_rows_per_s": rows / seconds, "dictionary_rows_per_s": rows / floor}


def main() -> int:
    """Print all figures; return 1 if the rules are slower than they may be."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--calls", type=int, default=100_000)
    options.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="metricsd-bench-") as name:
        folder = Path(name)
        make_source(folder / "source", chosen.calls)
        work = Work(folder / "work.db")
        survey(work, [folder / "source"], progress=lambda size: None)
        figures = rules(work)
        files = list(work.files())
        (folder / "second").mkdir()
        figures |= second(files, folder / "second")[0]
        figures |= matching(chosen.calls, folder)
        (folder / "check").mkdir()
        bench = Bench(sample.write(folder / "sample", files, Random(1)), folder / "check", NOW_US)
        seconds, found = timed(lambda: measure(bench, seed=1))
        bench.close()
        work.close()
        figures |= {"faults_found": found.found, "faults": FAULTS, "faults_s": seconds}
    if chosen.json:
        print(json.dumps(figures))
    else:
        for what, value in figures.items():
            print(f"{what:<30} {value:>14,.1f}")
        print(f"{'limit, rules_rows_per_s':<30} {RULES_ROWS_PER_S_MIN:>14,.1f}")
    return 0 if figures["rules_rows_per_s"] >= RULES_ROWS_PER_S_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
