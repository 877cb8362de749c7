"""The report in some lines for a terminal: the verdict with its numbers, the counts, what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from metricsd.migration.model import Tally
from metricsd.migration.report_model import Report

RECOMMENDATIONS_MAX = 5
MISMATCHES_MAX = 5
WIDTH = 100


def lines(report: Report) -> Iterator[str]:
    """Yield the lines."""
    confidence, counts = report.confidence, report.counts
    bound = f"confidence >= {confidence.score:.2f} % at 99 % confidence, coverage {_cut(confidence.coverage)}"
    yield f"{'PASS' if report.ok else 'FAIL'}  {bound}"
    for reason in report.reasons:
        yield f"      {reason}"
    yield ""
    yield f"{'':<14}{'source':>12}{'loaded':>12}{'merged':>12}{'rejected':>12}{'skipped':>12}"
    for name, tally in (
        ("sessions", counts.sessions),
        ("tool events", counts.tool_events),
        ("other events", counts.other_events),
    ):
        if tally.source:
            yield _row(name, tally)
    yield ""
    faults = f"{report.sensitivity.found:,} of {report.sensitivity.seeded:,}"
    yield f"every entry accounted for: {_yes(confidence.reconciled)}; faithful rows >= {_cut(confidence.accuracy_lb)}"
    yield f"faults that the check finds >= {_cut(confidence.sensitivity_lb)} ({faults} put in on purpose)"
    speed = f"{report.records_per_s:,.0f} entries a second, {report.peak_rss_mb:,.0f} MiB"
    yield f"quality of the source {report.quality_score:.2f} of 100; {speed}"
    alarms = [one.id for one in report.baseline if one.level in ("warning", "error")]
    alarms += [one.name for one in report.likenesses if one.level in ("warning", "error")]
    if alarms and report.comparable:
        yield f"alarms: {', '.join(alarms)}"
    for mismatch in report.mismatches[:MISMATCHES_MAX]:
        where = f" {mismatch.file}:{mismatch.line}" if mismatch.file else ""
        yield f"  {mismatch.how}: {mismatch.table} {mismatch.tool}{where} {' '.join(mismatch.fields)}".rstrip()
    if report.recommendations:
        yield ""
        for one in report.recommendations[:RECOMMENDATIONS_MAX]:
            yield from wrap(
                f"{one.count:>8,} x {one.rule}: {one.fix}", WIDTH, subsequent_indent=" " * 11, break_on_hyphens=False
            )
        more = len(report.recommendations) - RECOMMENDATIONS_MAX
        if more > 0:
            yield f"         and {more} more in the report"


def _row(name: str, tally: Tally) -> str:
    numbers = (tally.source, tally.loaded, tally.merged, tally.rejected, tally.skipped)
    return f"{name:<14}" + "".join(f"{number:>12,}" for number in numbers)


def _cut(share: float) -> str:
    return "100 %" if share >= 1 else f"{int(share * 10_000) / 100:.2f} %"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
