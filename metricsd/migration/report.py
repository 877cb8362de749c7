"""What a run leaves to read: `report.json`, `report.html` and `errors.jsonl`, in the report folder of the run.

The JSON has everything and is what the page and the summary on the terminal are made of, so none of them can say
something else. Nothing here holds content: places, names of files, rules, classes of values, counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from metricsd.errors import UsageError
from metricsd.migration.figures import HOURS, Figures
from metricsd.migration.ledger import Line, read_ledger
from metricsd.migration.model import FileKind, Result, Severity, StageFigures
from metricsd.migration.proof import Proof
from metricsd.migration.report_model import Count, Merge, Report, Stage, Tool
from metricsd.migration.report_page import page
from metricsd.migration.rules import REASON_PREFIX, Rule, rule_of
from metricsd.totals import percentile_ms

JSON, HTML, ERRORS = "report.json", "report.html", "errors.jsonl"
MERGES_MAX = 1000
"""Merges that are listed one by one; all are counted, and the ledger of the run has every one."""
IGNORED_MAX = 200
TOOLS_MAX = 50
QUALITY_FORMULA = "100 x (1 - (rejected + flagged / 2) / source)"
_PERCENTILES = (0.5, 0.95, 0.99)
_US = 1_000_000


def write(folder: Path, report: Report, ledger: Path) -> None:
    """Write all three files, each whole or not at all, readable by their owner alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _put(folder / ERRORS, (msgspec.json.encode(one) + b"\n" for one in errors(ledger)))
    _put(folder / HTML, iter((page(report).encode("utf-8", "replace"),)))
    # Last, because it says that the report is there.
    _put(folder / JSON, iter((msgspec.json.format(msgspec.json.encode(report), indent=1),)))


def read(folder: Path) -> Report:
    """Return a written report; raise UsageError when there is none."""
    try:
        return msgspec.json.decode((folder / JSON).read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{folder / JSON}: no report there; `metricsd migrate verify` writes one") from error


def make(result: Result, proof: Proof, ledger: Path, rules: Mapping[str, Rule]) -> Report:
    """Return the report of a run."""
    found, seconds = proof.comparison, max(_seconds(result), 1e-9)
    stages = tuple(_stage(stage) for stage in result.stages)
    files = size = 0
    ignored: dict[str, int] = {}
    for file in result.manifest.files:
        if file.kind is FileKind.IGNORED:
            ignored[file.why] = ignored.get(file.why, 0) + 1
        else:
            files, size = files + 1, size + file.size
    return Report(
        version=1,
        migration_id=result.migration_id,
        source=result.source,
        targets=result.targets,
        started_us=result.started_us,
        ended_us=result.ended_us,
        ok=not proof.reasons,
        reasons=proof.reasons,
        confidence=proof.confidence,
        quality_score=proof.quality_score,
        quality_formula=QUALITY_FORMULA,
        counts=result.counts,
        files=files,
        bytes=size,
        ignored=tuple(Count(why, count) for why, count in sorted(ignored.items())[:IGNORED_MAX]),
        stages=stages,
        records_per_s=round(result.counts.total.source / seconds, 1),
        peak_rss_mb=max((stage.peak_rss_mb for stage in stages), default=0.0),
        second_reader_rss_mb=proof.reading.peak_rss_mb,
        rejects=tuple(_reject(reason, count, rules) for reason, count in _most(result.rejects)),
        findings=tuple(_finding(rule, count, rules) for rule, count in _most(proof.by_rule)),
        recommendations=proof.recommendations,
        notes=tuple(Count(code, count) for code, count in _most(result.notes)),
        merges=tuple(merges(ledger)),
        rows=found.rows,
        records=found.records,
        digests={
            table: {"source": _text(found.source.get(table)), "target": _text(found.target.get(table))}
            for table in sorted(found.source.keys() | found.target.keys())
        },
        cells=found.cells,
        differing=tuple(found.differing),
        mismatches=tuple(found.mismatches),
        days=tuple((day, *counts) for day, counts in found.days.items()),
        tools=tuple(tools(proof.reading.by, proof.target)),
        hours=tuple(proof.reading.by.hours) or (0,) * HOURS,
        baseline=proof.baseline,
        likenesses=proof.likenesses,
        comparable=proof.comparable,
        sensitivity=proof.sensitivity,
        digest=result.digest,
    )


def errors(ledger: Path) -> Iterator[dict[str, object]]:
    """Yield what was rejected or found wrong, as `errors.jsonl` has it: where, by which rule, never what."""
    for line in read_ledger(ledger):
        if line.entry == "reject":
            rule = rule_of(line.code)
            yield {
                "file": line.file, "line": line.line, "offset": line.offset, "severity": Severity.HARD.value,
                "rule": rule.id if rule is not None else line.code.removeprefix(REASON_PREFIX), "field": line.field,
                "value": "", "hash": line.hash, "entries": 1 + line.others,
            }  # fmt: skip
        elif line.entry == "finding" and line.severity == Severity.SOFT.value:
            yield {
                "file": line.file, "line": line.line, "offset": line.offset, "severity": line.severity,
                "rule": line.code, "field": line.field, "value": line.value, "hash": "", "entries": 1,
            }  # fmt: skip


def merges(ledger: Path) -> Iterator[Merge]:
    """Yield the first MERGES_MAX merges of a run."""
    left = MERGES_MAX
    for line in read_ledger(ledger):
        if left and line.entry == "note" and line.code.startswith("merge."):
            left -= 1
            yield _merge(line)


def tools(source: Figures, target: Figures) -> Iterator[Tool]:
    """Yield the tools with the most calls, as both sides count them."""
    names = sorted(source.tools.keys() | target.tools.keys(), key=lambda name: (-_calls(source, name), name))
    for name in names[:TOOLS_MAX]:
        of = source.tools.get(name)
        median, p95, p99 = (None if of is None else percentile_ms(of.buckets, share) for share in _PERCENTILES)
        yield Tool(
            name, _calls(source, name), _calls(target, name), of.failed if of is not None else 0, median, p95, p99
        )


def _calls(figures: Figures, tool: str) -> int:
    of = figures.tools.get(tool)
    return 0 if of is None else of.calls


def _merge(line: Line) -> Merge:
    return Merge(line.code.removeprefix("merge."), line.file, line.line, line.others)


def _reject(reason: str, count: int, rules: Mapping[str, Rule]) -> Count:
    rule = rule_of(reason) or rules.get(reason.removeprefix(REASON_PREFIX))
    return Count(reason, count, "" if rule is None else rule.what, Severity.HARD.value)


def _finding(name: str, count: int, rules: Mapping[str, Rule]) -> Count:
    rule = rules.get(name)
    return Count(name, count, "" if rule is None else rule.what, "" if rule is None else rule.severity.value)


def _stage(stage: StageFigures) -> Stage:
    per_s = round(stage.items / stage.seconds, 1) if stage.seconds else 0.0
    return Stage(stage.name, stage.items, stage.seconds, per_s, stage.peak_rss_mb)


def _seconds(result: Result) -> float:
    return sum(stage.seconds for stage in result.stages) or (result.ended_us - result.started_us) / _US


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _text(digest: tuple[int, int] | None) -> str:
    return "0 0000000000000000" if digest is None else f"{digest[0]} {digest[1]:016x}"


def _put(path: Path, chunks: Iterator[bytes]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
