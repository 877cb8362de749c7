"""A whole run with its proof, in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from metricsd.clock import SystemClock
from metricsd.config import find_paths
from metricsd.migration import report, state
from metricsd.migration.load import StoreSink
from metricsd.migration.model import Summary
from metricsd.migration.proving import RunProof
from metricsd.migration.report_model import Report
from metricsd.migration.runner import Home, Runner
from metricsd.migration.state import Options, RunFolder
from metricsd.store.connection import Store


class Proven(NamedTuple):
    """What a run left."""

    summary: Summary
    report: Report
    folder: RunFolder
    store: Path


def prove(
    home: Path,
    *sources: Path,
    faults: int = 0,
    rules: tuple[str, ...] = (),
    accept: bool = True,
    before_proof: Callable[[Path], None] = lambda store: None,
) -> Proven:
    """Migrate into the store of `home` and prove it; `before_proof` may do something to the store in between.

    Without `faults` put in on purpose the verdict can never be a pass, and everything else is as it would be.
    """
    paths = find_paths({"METRICSD_HOME": str(home)})
    path = paths.store
    clock = SystemClock()
    options = Options(sources=tuple(map(str, sources)), accept_rejects=accept, rules=rules)
    folder = state.create(paths, options, clock.now_us())
    proof = RunProof(folder, path, faults=faults)

    class Sink(StoreSink):
        def digest(self) -> str:
            before_proof(path)
            return super().digest()

    def sinks(_: object) -> list[StoreSink]:
        return [Sink(Store.open(path, clock=clock), folder.id, "test")]

    runner = Runner(
        folder, folder.read(), Home(clock, sinks, proof, lambda told: None, lambda rejected, source: accept)
    )
    summary = runner.go()
    return Proven(summary, report.read(folder.report), folder, path)
