"""Proves a run: starts the second reading and the check of the check beside it, compares at the end, and judges.

Knows the run by its result, its ledger and its folder alone, and what happened to the data by nothing but the two ends.
`RunProof` is the runner's `Proof`.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec import Struct

from metricsd.errors import MetricsdError
from metricsd.migration.baseline import Likeness, Metric, likenesses, metrics
from metricsd.migration.compare import Comparer, Comparison, Records, excluded_places
from metricsd.migration.confidence import Evidence, judge
from metricsd.migration.figures import Figures
from metricsd.migration.ledger import Line, read_ledger
from metricsd.migration.model import Confidence, Finding, Manifest, Result
from metricsd.migration.reconcile import differences
from metricsd.migration.rules import BY_ID, REASON_PREFIX
from metricsd.migration.rules_calls import add
from metricsd.migration.second.books import Books
from metricsd.migration.second.reader import BOOKS, SIDE, Reading
from metricsd.migration.second.wire import Sent
from metricsd.migration.second_process import Beside, SecondReading
from metricsd.migration.sensitivity.measure import FAULTS, OfKind, Sensitivity, decode
from metricsd.migration.side import Side
from metricsd.migration.validate import Recommendation, Validator, percent, quality_score, recommend

WORKERS = 2
"""Processes that put faults in: on two cores a small run waits half as long."""
OPAQUE_REASONS = frozenset(("too_old", "store_refused"))
"""Reasons of a target to refuse a row, which the source does not tell."""
SESSIONS_WITHOUT_CALLS_SHARE = 0.5
FOLDER = "proof"
_TARGET = "target"


class Proof(Struct, frozen=True):
    """Everything that was found out about a run, for its report."""

    confidence: Confidence
    reasons: tuple[str, ...]
    quality_score: float
    reading: Reading
    comparison: Comparison
    baseline: tuple[Metric, ...]
    likenesses: tuple[Likeness, ...]
    target: Figures
    """What the target holds of the run, in figures."""
    comparable: bool
    """Whether the figures of both sides are of the same rows: not when entries were known before the run."""
    sensitivity: Sensitivity
    findings: tuple[Finding, ...]
    """About the whole set."""
    by_rule: dict[str, int]
    recommendations: tuple[Recommendation, ...]
    seconds: float


class Target(Records, Protocol):
    """A target that can be read back."""

    def read_events(self, side: Side, key: bytes, *, everything: bool) -> int:
        """Write its events into a side; with `everything`, also those that this run did not bring."""
        ...

    def is_hooked(self, session: str) -> bool:
        """Return whether hooks captured a session, so that its transcript is not counted as well."""
        ...


class Task(NamedTuple):
    """What a proof needs to know: the run, its private folder, its ledger, and how its target is opened.

    `sent` says how rows leave this machine, where the target is the cloud.
    """

    run: str
    folder: Path
    ledger: Path
    open_target: Callable[[], AbstractContextManager[Target]]
    faults: int = FAULTS
    sent: Sent | None = None


class Prover:
    """The proof of one run. Close it in any case."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.folder = task.folder
        """Private to this attempt, once it has begun."""
        self._second: SecondReading | None = None
        self._checks: list[tuple[int, Beside]] = []
        self._started_us = 0

    def aim(self, open_target: Callable[[], AbstractContextManager[Target]], sent: Sent) -> None:
        """Compare with another target than the store; before the beginning."""
        self._task = self._task._replace(open_target=open_target, sent=sent)

    def begin(self, manifest: Manifest, started_us: int) -> None:
        """Begin to read the source a second time, and to put faults into a sample of it."""
        for left in self._task.folder.glob(f"{FOLDER}-*"):
            # Of an attempt that was killed. Each has a name of its own, so what still writes there disturbs nobody.
            shutil.rmtree(left, ignore_errors=True)
        folder = self.folder = self._task.folder / f"{FOLDER}-{secrets.token_hex(4)}"
        self._second = SecondReading(folder, manifest.files, started_us, self._task.sent)
        self._started_us = started_us
        for seed in range(1, WORKERS + 1) if self._task.faults else ():
            faults = self._task.faults // WORKERS
            arguments = [str(folder), str(seed), str(faults)]
            self._checks.append((seed, Beside("metricsd.migration.sensitivity", arguments)))

    def conclude(self, result: Result, validator: Validator) -> Proof:
        """Compare source and target, and judge. Raises MetricsdError when one of them cannot be read."""
        began = time.perf_counter()
        if self._second is None:
            raise MetricsdError("the proof of a run must begin before it ends")
        second, counts = self._second, result.counts
        reading = second.wait()
        excluded, entries = self._excluded(result.manifest, validator)
        comparer = Comparer(frozenset(excluded))
        with self._task.open_target() as target:
            side = Side(second.folder / _TARGET)
            target.read_events(side, second.key, everything=counts.total.skipped > 0)
            source = Side.reopen(second.folder / SIDE, reading.cells, reading.rows)
            books = Books(second.folder / BOOKS)

            def is_elsewhere(identity: int) -> bool:
                session = books.session_of(identity)
                return session is not None and target.is_hooked(session)

            try:
                comparer.rows(source, side, is_elsewhere)
                comparer.records(books, target, second.key, self._started_us)
            finally:
                books.close()
            figures = target.by
        found = comparer.finish(file.name for file in result.manifest.files)
        sensitivity = self._sensitivity(second.folder)
        off = differences(counts, reading, found, excluded=entries)
        own = _findings(found, reading, off)
        findings = [*validator.finish(counts), *own]
        confidence, reasons = judge(_evidence(found, sensitivity, off))
        by_rule = dict(validator.running.by_rule)
        for finding in own:
            by_rule[finding.rule] = by_rule.get(finding.rule, 0) + 1
        return Proof(
            confidence=confidence,
            reasons=reasons,
            quality_score=quality_score(counts.total.source, counts.total.rejected, validator.running.flagged),
            reading=reading,
            comparison=found,
            baseline=tuple(metrics(reading.by, figures)),
            likenesses=tuple(likenesses(reading.by, figures, found.days)),
            target=figures,
            comparable=counts.total.skipped == 0,
            sensitivity=sensitivity,
            findings=tuple(findings),
            by_rule=by_rule,
            recommendations=tuple(recommend(by_rule, result.rejects, validator.rules())),
            seconds=time.perf_counter() - began,
        )

    def close(self) -> None:
        """End what is still at work, and remove what it wrote."""
        for _, check in self._checks:
            check.close()
        if self._second is not None:
            self._second.close()

    def _excluded(self, manifest: Manifest, validator: Validator) -> tuple[set[int], int]:
        """Return the places of entries that were left out for reasons the second reader cannot know, and how many."""
        lines = [line for line in read_ledger(self._task.ledger) if _is_opaque(line, validator)]
        wanted = {line.file for line in lines}
        numbers = (
            {file.name: number for number, file in enumerate(manifest.files) if file.name in wanted} if lines else {}
        )
        places = excluded_places(((line.file, line.line) for line in lines), numbers)
        return set(places), sum(1 + line.others for line in lines)

    def _sensitivity(self, folder: Path) -> Sensitivity:
        """Return what all checks together noticed."""
        if not self._checks:
            return Sensitivity(0, 0, (), 0, 0, 0.0)
        parts = []
        for seed, check in self._checks:
            check.wait()
            parts.append(decode((folder / f"check-{seed}.json").read_bytes()))
        kinds = tuple(
            OfKind(some[0].name, some[0].stage, sum(one.seeded for one in some), sum(one.found for one in some))
            for some in zip(*(part.kinds for part in parts), strict=True)
        )
        return Sensitivity(
            seeded=sum(part.seeded for part in parts),
            found=sum(part.found for part in parts),
            kinds=kinds,
            seed=parts[0].seed,
            rows=parts[0].rows,
            seconds=sum(part.seconds for part in parts),
        )


def _is_opaque(line: Line, validator: Validator) -> bool:
    if line.entry != "reject":
        return False
    rule = line.code.removeprefix(REASON_PREFIX)
    return line.code in OPAQUE_REASONS or (rule != line.code and rule not in BY_ID and rule in validator.rules())


def _evidence(found: Comparison, sensitivity: Sensitivity, off: list[str]) -> Evidence:
    failures = list(off)
    if found.differing and not found.unfaithful:
        failures.append(f"the digests of {len(found.differing)} cells differ although every row matches")
    return Evidence(
        reconciled=not off,
        expected=found.expected,
        compared=found.expected,
        unfaithful=found.unfaithful,
        seeded=sensitivity.seeded,
        found=sensitivity.found,
        failures=tuple(failures),
    )


def _findings(found: Comparison, reading: Reading, off: list[str]) -> list[Finding]:
    """Return what the comparison says by the rules on the whole set."""
    findings: list[Finding] = []
    if off:
        add(findings, "counts_reconcile", None, "", f"{len(off)} sums")
    if found.unfaithful or found.differing:
        add(findings, "rows_are_equal", None, "", f"{found.unfaithful} rows")
    if found.sessions_without_calls > SESSIONS_WITHOUT_CALLS_SHARE * reading.sessions:
        add(findings, "sessions_have_calls", None, "", percent(found.sessions_without_calls, reading.sessions))
    if found.counters_disagree:
        add(findings, "counters_add_up", None, "commands_executed", f"{found.counters_disagree} sessions")
    if found.rows.conflicts:
        add(findings, "facts_agree", None, "", f"{found.rows.conflicts} entries")
    return findings
