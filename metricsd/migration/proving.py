"""The runner's proof: everything behind the load, from the second reading to the written report."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from metricsd.client import CloudClient
from metricsd.config import Sync
from metricsd.crash import crash_point
from metricsd.identity import Credentials
from metricsd.migration import report
from metricsd.migration.memory import peak_rss_mb
from metricsd.migration.model import Manifest, Result, StageFigures
from metricsd.migration.proof import FOLDER, Prover, Target, Task
from metricsd.migration.runner import PROVE, Proven
from metricsd.migration.second.wire import Sent
from metricsd.migration.sensitivity.measure import FAULTS
from metricsd.migration.state import RunFolder
from metricsd.migration.target_cloud import Connect, open_cloud
from metricsd.migration.target_store import open_store
from metricsd.migration.validate import Validator
from metricsd.sync.outgoing import LEVEL_NAMES


class Cloud(NamedTuple):
    """How the cloud is reached that a run was brought to: the login, the settings, and what makes a client."""

    login: Credentials
    settings: Sync
    connect: Connect = CloudClient


class RunProof:
    """Proves one attempt at a run, and writes its report. Close it in any case."""

    def __init__(self, folder: RunFolder, store: Path, *, faults: int = FAULTS, cloud: Cloud | None = None) -> None:
        """Prove a run into the store, or into the cloud alone.

        `faults` is how many are put into a sample on purpose: fewer show less, and below 459 nothing can pass.
        """
        self._folder = folder
        task = Task(folder.id, folder.path, folder.ledger, lambda: open_store(store, folder.id), faults)
        if cloud is not None:
            login, settings = cloud.login, cloud.settings
            sent = Sent(login.tenant_key.hex(), settings.level == LEVEL_NAMES, tuple(settings.share_projects))
            proof = folder.path / FOLDER

            def opened() -> AbstractContextManager[Target]:
                return open_cloud(proof, folder.id, login, settings, cloud.connect)

            task = task._replace(open_target=opened, sent=sent)
        self._prover = Prover(task)

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
