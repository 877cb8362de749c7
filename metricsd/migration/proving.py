"""The runner's proof: everything behind the load, from the second reading to the written report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from metricsd.migration.proof import Prover, Target, Task
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

    def __init__(
        self, folder: RunFolder, store: Path, *, faults: int = FAULTS, cloud: Callable[[], Cloud] | None = None
    ) -> None:
        """Prove a run into the store, or into the cloud alone, which is asked for when the run begins.

        `faults` is how many are put into a sample on purpose: fewer show less, and below 459 nothing can pass.
        """
        self._folder = folder
        self._store = store
        self._cloud = cloud
        self._prover = Prover(Task(folder.id, folder.path, folder.ledger, self._opened_store, faults))

    def begin(self, manifest: Manifest, started_us: int) -> None:
        """Begin to read the source a second time, in processes of their own."""
        if self._cloud is not None:
            cloud = self._cloud()
            settings = cloud.settings
            sent = Sent(cloud.login.tenant_key.hex(), settings.level == LEVEL_NAMES, tuple(settings.share_projects))
            self._prover.aim(lambda: self._opened_cloud(cloud), sent)
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

    def _opened_store(self) -> AbstractContextManager[Target]:
        return open_store(self._store, self._folder.id)

    @contextmanager
    def _opened_cloud(self, cloud: Cloud) -> Iterator[Target]:
        with ExitStack() as stack:
            opened = open_cloud(self._prover.folder, self._folder.id, cloud.login, cloud.settings, cloud.connect)
            target = stack.enter_context(opened)
            if self._store.exists():
                target.hooked = stack.enter_context(open_store(self._store, self._folder.id)).is_hooked
            yield target
