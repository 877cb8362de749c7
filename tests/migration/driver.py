"""`python -m tests.migration.driver HOME SOURCE RUN PART_ROWS`: one attempt at a run, without the proof behind it.

A process of its own, so that a test can kill it. Prints the summary.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from metricsd.clock import SystemClock
from metricsd.config import find_paths
from metricsd.errors import UsageError
from metricsd.migration import state
from metricsd.migration.load import StoreSink
from metricsd.migration.runner import Home, Runner
from metricsd.store.connection import Store


def main(home: str, source: str, run: str, part_rows: str) -> None:
    """Begin a run with this id, or go on with it."""
    paths = find_paths({"METRICSD_HOME": home})
    folder = state.RunFolder(state.folder_of(paths) / run)
    try:
        found = folder.read()
    except UsageError:
        folder.path.mkdir(parents=True, exist_ok=True)
        found = state.Run(run, state.Options(sources=(source,), accept_rejects=True), created_us=1_790_000_000_000_000)
        folder.write(found)
    with folder.locked():
        runner = Runner(
            folder,
            found,
            Home(
                SystemClock(), lambda work: [StoreSink(Store.open(paths.store), run, "test")], None, lambda told: None,
                lambda rejected, entries: True, part_rows=int(part_rows),
            ),
        )  # fmt: skip
        print(msgspec.json.encode(runner.go()).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
    Path(sys.argv[1], "done").touch()
