"""Runs a migration: the one module that knows every stage.

A run is a folder (state.py), a source, and one or two targets that hold how far it is. It may be killed anywhere: what a
target holds, it holds with its checkpoint, so `resume` goes on exactly there and ends with the digest of an undisturbed
run. Rejected entries beyond 1 % pause it until somebody accepts them, beyond 5 % they end it. What was loaded until then
stays, stands in the list of migrations, and can be taken back.
"""

from __future__ import annotations

import gc
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from metricsd import collector
from metricsd.clock import Clock
from metricsd.crash import crash_point
from metricsd.errors import MetricsdError, MigrationPaused, StoreReplaced, StoreUnavailable, UsageError
from metricsd.migration.custom_rules import CustomRules
from metricsd.migration.discover import common_root
from metricsd.migration.ledger import Ledger, read_ledger
from metricsd.migration.memory import peak_rss_mb
from metricsd.migration.model import (
    Confidence,
    Counts,
    Finding,
    Manifest,
    Part,
    Place,
    Planned,
    Progress,
    Rejected,
    Result,
    Severity,
    Sink,
    StageFigures,
    Stored,
    Summary,
    batch_name,
)
from metricsd.migration.parse import DONE, PART_ROWS, START, Parser, Piece, check_unchanged
from metricsd.migration.people import make_people
from metricsd.migration.state import Run, RunFolder, RunState
from metricsd.migration.survey import survey
from metricsd.migration.transform import Transform
from metricsd.migration.validate import Gate, Validator, gate_of, quality_score
from metricsd.migration.work import Files, Work

TRIES_MAX = 6
PAUSE_S = 0.5
"""Before a part that the store could not take now is tried again; doubled each time."""
PARTS_PER_COLLECTION = 50
RULE_PREFIX = "rule_"
SURVEY, PARSE, TRANSFORM, VALIDATE, LOAD, PROVE, REPORT = (
    "survey", "parse", "transform", "validate", "load", "compare", "report",
)  # fmt: skip
NOT_PROVEN = Confidence(reconciled=False, coverage=0.0, accuracy_lb=0.0, sensitivity_lb=0.0, score=0.0, verdict="fail")


class Told(NamedTuple):
    """What a run says while it goes on: bytes read of all, entries of the source so far, how many were rejected."""

    stage: str
    bytes_done: int
    bytes_total: int
    entries: int
    rejected: int


class Proven(NamedTuple):
    """What the comparison came to; `reasons` speak against a pass."""

    confidence: Confidence
    quality_score: float
    reasons: tuple[str, ...]
    seconds: float
    report_seconds: float


class Proof(Protocol):
    """The second reading, the comparison and the report: everything behind the load."""

    def begin(self, manifest: Manifest, started_us: int) -> None:
        """Begin to read the source a second time, in a process of its own."""
        ...

    def conclude(self, result: Result, validator: Validator) -> Proven:
        """Compare source and target, write the report, and say what it came to."""
        ...

    def close(self) -> None:
        """End what is still at work."""
        ...


class Home(NamedTuple):
    """What a run needs of its surroundings.

    tell    is told how far the run is
    accept  asks a person whether so many rejected of so many entries are all right; False where nobody is there
    """

    clock: Clock
    sinks: Callable[[Work], Sequence[Sink]]
    proof: Proof | None
    tell: Callable[[Told], None]
    accept: Callable[[int, int], bool]
    part_rows: int = PART_ROWS


class Runner:
    """One attempt at one run. The caller holds the run's lock."""

    def __init__(self, folder: RunFolder, run: Run, home: Home) -> None:
        self._folder = folder
        self._run = run
        self._home = home
        self._began = time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._items: Counter[str] = Counter()
        self._rss: dict[str, float] = {}
        self._counts = Counts()
        self._accepted = run.options.accept_rejects
        self._read = 0
        self._total = 0

    def go(self) -> Summary:
        """Run, or go on, to the end. Raises MigrationPaused, SourceChanged, StoreError and other MetricsdErrors.

        Whatever it raises, the run can be resumed when its cause is gone.
        """
        self._note(RunState.RUNNING, "")
        try:
            with ExitStack() as stack:
                summary = self._go(stack)
        except MigrationPaused as paused:
            self._note(RunState.PAUSED, str(paused))
            raise
        except MetricsdError as error:
            self._note(RunState.FAILED, str(error))
            raise
        except KeyboardInterrupt:
            self._note(RunState.PAUSED, "interrupted")
            raise
        state = RunState.DONE if summary.ok else RunState.FAILED
        summary = replace(summary, state=state.value)
        self._run = replace(self._run, summary=summary)
        self._note(state, summary.reason)
        return summary

    def verify(self) -> Summary:
        """Compare source and target again, as they are now, write the report anew, and return what it came to.

        Raises UsageError for a run that has not stored everything, SourceChanged where the source is not what it was.
        """
        with ExitStack() as stack:
            work = self._opened(stack)
            if not work.is_surveyed:
                raise UsageError(f"migration {self._run.id} has not read its source: `metricsd migrate run --resume`")
            check_unchanged(work)
            manifest, validator, sinks = self._begun(stack, work)
            held = sinks[0].progress()
            if held.after.stage != DONE:
                raise UsageError(f"migration {self._run.id} has not stored everything: `metricsd migrate run --resume`")
            self._counts = held.counts
            validator.restore(held.rules)
            summary = self._concluded(manifest, sinks, validator)
        state = self._run.state
        if state is not RunState.ROLLED_BACK:
            state = RunState.DONE if summary.ok else RunState.FAILED
        summary = replace(summary, state=state.value)
        self._run = replace(self._run, summary=summary)
        self._note(state, summary.reason)
        return summary

    def unfinished(self, reason: str) -> Summary:
        """Return the summary of a run that did not come to its end."""
        return self._summary(NOT_PROVEN, 0.0, (reason,), "")

    def _go(self, stack: ExitStack) -> Summary:
        options = self._run.options
        work = self._opened(stack)
        is_resumed = work.is_surveyed
        with self._timed(SURVEY):
            survey(work, [Path(source) for source in options.sources], progress=self._surveyed)
            totals = work.totals()
        self._items[SURVEY] = totals["files"]
        crash_point("migrate_surveyed")
        if is_resumed:
            check_unchanged(work)
        manifest, validator, sinks = self._begun(stack, work)
        self._total, self._read = totals["line_bytes"], 0
        self._load(stack, work, sinks, validator)
        crash_point("migrate_loaded")
        return self._conclude(manifest, sinks, validator)

    def _opened(self, stack: ExitStack) -> Work:
        work = Work(self._folder.work)
        stack.callback(work.close)
        return work

    def _begun(self, stack: ExitStack, work: Work) -> tuple[Manifest, Validator, Sequence[Sink]]:
        """Return the source, the rules and the targets, and begin the second reading."""
        options = self._run.options
        manifest = Manifest(str(common_root([Path(source) for source in options.sources])), Files(work))
        custom: list[CustomRules] = []
        for path in options.rules:
            custom.append(CustomRules(Path(path)))
            stack.callback(custom[-1].close)
        validator = Validator(self._run.created_us, find_session=work.span, custom=custom)
        sinks = self._home.sinks(work)
        for sink in sinks:
            stack.callback(sink.close)
        # Behind the targets: how rows leave this machine is known once the cloud is.
        if self._home.proof is not None:
            stack.callback(self._home.proof.close)
            self._home.proof.begin(manifest, self._run.created_us)
        return manifest, validator, sinks

    def _load(self, stack: ExitStack, work: Work, sinks: Sequence[Sink], validator: Validator) -> None:
        options = self._run.options
        held = [sink.progress() for sink in sinks]
        # The one that is least far decides; the others pass over what they have.
        least = min(held, key=lambda progress: progress.part)
        self._counts = held[0].counts
        validator.restore(least.rules)
        ledger = Ledger(self._folder.ledger, least.ledger)
        stack.callback(ledger.close)
        transform = Transform(work, make_people(options.users, options.users_file, options.default_user))
        pieces = Parser(work, part_rows=self._home.part_rows).parts(least.after if least.part else START)
        stack.enter_context(collector.held_off())
        for number, piece in enumerate(self._parsed(pieces), start=least.part + 1):
            batch = batch_name(self._run.id, number)
            with self._timed(TRANSFORM):
                planned = [transform.plan(row, batch) for row in piece.rows]
            with self._timed(VALIDATE):
                findings = validator.check(planned)
                kept, refused = refuse(planned, findings)
            rejected = [*piece.rejected, *refused]
            self._count_items(len(piece.rows) + len(piece.rejected), len(kept))
            notes = [note for one in kept for note in one.notes]
            crash_point("migrate_part_validated")
            ledger.add(rejected, findings, notes)
            crash_point("migrate_part_ledger")
            part = Part(self._run.id, number, kept, rejected, piece.after, validator.snapshot(), findings)
            self._store(part, sinks, held, ledger)
            self._tell(LOAD, piece.size)
            if number % PARTS_PER_COLLECTION == 0:
                gc.collect()
            self._look_at_gate(going_on=True)

    def _store(self, part: Part, sinks: Sequence[Sink], held: Sequence[Progress], ledger: Ledger) -> None:
        """Give a part to every target that does not hold it. The first one's counts are the run's."""
        with self._timed(LOAD):
            for index, sink in enumerate(sinks):
                if part.number <= held[index].part:
                    continue
                stored = self._taken(sink, part, ledger.add)
                if index == 0:
                    self._counts += stored.counts
        crash_point("migrate_part_stored")

    def _taken(self, sink: Sink, part: Part, ledger: Callable[[Sequence[Rejected]], int]) -> Stored:
        """Store a part; a store that is busy is asked again for a while."""
        pause_s = PAUSE_S
        for _ in range(TRIES_MAX - 1):
            try:
                return sink.take(part, ledger)
            except StoreReplaced:
                raise
            except StoreUnavailable:
                time.sleep(pause_s)
                pause_s *= 2
        return sink.take(part, ledger)

    def _conclude(self, manifest: Manifest, sinks: Sequence[Sink], validator: Validator) -> Summary:
        """Look at the whole, compare, report."""
        self._look_at_gate(going_on=False)
        return self._concluded(manifest, sinks, validator)

    def _concluded(self, manifest: Manifest, sinks: Sequence[Sink], validator: Validator) -> Summary:
        result = self._result(manifest, sinks[0])
        if self._home.proof is None:
            return self._unproven(validator, result.digest)
        self._tell(PROVE, 0)
        proven = self._home.proof.conclude(result, validator)
        self._seconds[PROVE], self._seconds[REPORT] = proven.seconds, proven.report_seconds
        crash_point("migrate_reported")
        return self._summary(proven.confidence, proven.quality_score, proven.reasons, result.digest)

    def _unproven(self, validator: Validator, digest: str) -> Summary:
        """Return what a dry run came to: counts and rules, because there is no target to be read back."""
        validator.finish(self._counts)
        total, running = self._counts.total, validator.running
        reasons = [] if self._counts.reconciles else ["the counts do not reconcile"]
        confidence = replace(NOT_PROVEN, reconciled=self._counts.reconciles, verdict="fail" if reasons else "pass")
        return self._summary(
            confidence, quality_score(total.source, total.rejected, running.flagged), tuple(reasons), digest
        )

    def _look_at_gate(self, *, going_on: bool) -> None:
        """Pause, ask or stop when too much was rejected; a person who accepts is not asked again in this run."""
        total = self._counts.total
        match gate_of(total.rejected, total.source, accepted=self._accepted, going_on=going_on):
            case Gate.OPEN:
                return
            case Gate.PAUSE:
                if not self._home.accept(total.rejected, total.source):
                    raise MigrationPaused(
                        f"{total.rejected} of {total.source} entries were rejected, more than 1 %: `metricsd migrate report"
                        f" {self._run.id}` lists them, `metricsd migrate run --resume {self._run.id} --accept-rejects` goes on"
                    )
                self._accepted = True
                self._run = replace(self._run, options=replace(self._run.options, accept_rejects=True))
            case Gate.STOP:
                raise MetricsdError(
                    f"{total.rejected} of {total.source} entries were rejected, more than 5 %: this is hardly a source of"
                    f" that kind; `metricsd migrate report {self._run.id}` lists them, `metricsd migrate rollback"
                    f" {self._run.id}` takes back what was loaded"
                )

    def _parsed(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        while True:
            with self._timed(PARSE):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _timed(self, stage: str) -> _Timed:
        return _Timed(self._seconds, self._rss, stage)

    def _count_items(self, read: int, planned: int) -> None:
        for stage, count in ((PARSE, read), (TRANSFORM, planned), (VALIDATE, planned), (LOAD, planned)):
            self._items[stage] += count

    def _surveyed(self, size: int) -> None:
        self._read += size
        self._home.tell(Told(SURVEY, self._read, 0, 0, 0))

    def _tell(self, stage: str, size: int) -> None:
        self._read += size
        total = self._counts.total
        self._home.tell(Told(stage, min(self._read, self._total), self._total, total.source, total.rejected))

    def _result(self, manifest: Manifest, sink: Sink) -> Result:
        parts, digest = sink.progress().part, sink.digest()
        rejects, notes = count_ledger(self._folder.ledger)
        return Result(
            migration_id=self._run.id,
            source=manifest.root,
            targets=self._run.options.to,
            started_us=self._run.created_us,
            ended_us=self._home.clock.now_us(),
            ok=self._counts.reconciles,
            dry_run=self._run.options.dry_run,
            manifest=manifest,
            counts=self._counts,
            notes=notes,
            rejects=rejects,
            stages=self._stages(),
            parts=parts,
            digest=digest,
            report_dir=str(self._folder.report),
        )

    def _stages(self) -> tuple[StageFigures, ...]:
        return tuple(
            StageFigures(name, self._items[name], round(seconds, 3), self._rss.get(name, 0.0))
            for name, seconds in self._seconds.items()
        )

    def _summary(self, confidence: Confidence, quality: float, reasons: tuple[str, ...], digest: str) -> Summary:
        counts, seconds = self._counts, self._run.seconds + time.monotonic() - self._began
        is_dry = self._run.options.dry_run
        ok = confidence.verdict == "pass"
        return Summary(
            migration_id=self._run.id,
            ok=ok,
            sessions=counts.sessions,
            tool_events=counts.tool_events,
            quarantined=0 if is_dry else counts.total.rejected,
            quality_score=quality,
            confidence=confidence,
            duration_s=round(seconds, 3),
            records_per_s=round(counts.total.source / seconds, 1) if seconds else 0.0,
            peak_rss_mb=round(peak_rss_mb(), 1),
            report_dir=str(self._folder.report),
            other_events=counts.other_events,
            dry_run=is_dry,
            state=self._run.state.value,
            reason="; ".join(reasons),
            digest=digest,
        )

    def _note(self, state: RunState, reason: str) -> None:
        """Store where the run stands."""
        now = time.monotonic()
        self._run = replace(
            self._run, state=state, reason=reason, updated_us=self._home.clock.now_us(),
            seconds=self._run.seconds + now - self._began,
        )  # fmt: skip
        self._began = now
        self._folder.write(self._run)


class _Timed:
    """Adds the time of a block to its stage, and notes the most memory that was used until its end."""

    __slots__ = ("_began", "_rss", "_seconds", "_stage")

    def __init__(self, seconds: defaultdict[str, float], rss: dict[str, float], stage: str) -> None:
        self._seconds = seconds
        self._rss = rss
        self._stage = stage
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._stage] += time.perf_counter() - self._began
        self._rss[self._stage] = round(peak_rss_mb(), 1)


def refuse(planned: Sequence[Planned], findings: Sequence[Finding]) -> tuple[Sequence[Planned], list[Rejected]]:
    """Return the rows that are kept, and those that a hard finding rejects, each with its first such rule. Pure."""
    hard: dict[Place, Finding] = {}
    for finding in findings:
        if finding.severity is Severity.HARD and finding.place is not None:
            hard.setdefault(finding.place, finding)
    if not hard:
        return planned, []
    kept = [one for one in planned if one.row.place not in hard]
    refused = [_refused(one, hard[one.row.place]) for one in planned if one.row.place in hard]
    return kept, refused


def _refused(planned: Planned, finding: Finding) -> Rejected:
    row = planned.row
    detail = f"{finding.field}: {finding.value_class}" if finding.field else finding.value_class
    return Rejected(
        row.place, row.subject, RULE_PREFIX + finding.rule, detail, row.data or None, len(row.data), 1 + len(row.others)
    )


def count_ledger(path: Path) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return the rejected entries by reason and the notes by code, as the ledger has them."""
    rejects: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for line in read_ledger(path):
        if line.entry == "reject":
            rejects[line.code] += 1 + line.others
        elif line.entry == "note":
            notes[line.code] += 1
    return dict(rejects), dict(notes)
