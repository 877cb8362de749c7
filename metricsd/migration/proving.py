"""The runner's proof: everything behind the load, from the second reading to the written report."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import replace

from metricsd.crash import crash_point
from metricsd.migration import report
from metricsd.migration.memory import peak_rss_mb
from metricsd.migration.model import Manifest, Result, StageFigures
from metricsd.migration.proof import Prover, Task
from metricsd.migration.runner import PROVE, Proven
from metricsd.migration.sensitivity.measure import FAULTS
from metricsd.migration.state import RunFolder
from metricsd.migration.target_store import open_store
from metricsd.migration.validate import Validator


class RunProof:
    """Proves one attempt at a run into the local store, and writes its report. Close it in any case."""

    def __init__(self, folder: RunFolder, store: Path, *, faults: int = FAULTS) -> None:
        """`faults` is how many are put into a sample on purpose: fewer show less, and below 459 nothing can pass."""
        self._folder = folder
        self._prover = Prover(Task(folder.id, folder.path, folder.ledger, lambda: open_store(store, folder.id), faults))

    def begin(self, manifest: Manifest, started_us: int) -> None:
        """Begin to read the source a second time, in processes of their own."""
        self._prover.begin(manifest, started_us)

    def conclude(self, result: Result, validator: Validator) -> Proven:
        """Compare source and target, write the report, and say what it came to."""
        proof = self._prover.conclude(result, validator)
        crash_point("migrate_compared")
        began = time.perf_counter()
        compared = StageFigures(PROVE, proof.comparison.expected, round(proof.seconds, 3), peak_rss_mb())
        found = report.make(
            replace(result, stages=(*result.stages, compared)), proof, self._folder.ledger, validator.rules()
        )
        report.write(self._folder.report, found, self._folder.ledger)
        return Proven(proof.confidence, proof.quality_score, proof.reasons, proof.seconds, time.perf_counter() - began)

    def close(self) -> None:
        """End what is still at work."""
        self._prover.close()
