"""The report as one HTML file: no script, nothing from outside, charts inside, readable on a screen and on paper. Pure.

Every text passes `escape`, because names of files and tools come from strangers, and the page's own policy forbids
whatever should slip through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from html import escape

from metricsd.migration.charts import Bar, bars, columns
from metricsd.migration.model import Tally
from metricsd.migration.report_model import Report

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROWS_MAX = 100
_LEVELS = {"ok": "good", "info": "", "warning": "warn", "error": "bad"}
_SEVERITIES = {"hard": "bad", "soft": "warn", "info": ""}
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6875; --line: #d9dfe5; --paper: #fff; --panel: #f5f7f9;
  --a: #2f6fb0; --b: #e08a2e; --good: #1f7a44; --warn: #a56300; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9aa7b4; --line: #36414c; --paper: #12181e;
  --panel: #1a222a; --a: #6aa9e9; --b: #f0a95c; --good: #62c58b; --warn: #e5ad55; --bad: #f2827b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; } summary { cursor: pointer; margin: .8rem 0; } .wide + .wide { margin-top: 1.2rem; }
.soft, .none { color: var(--soft); } .mono { font-family: ui-monospace, Menlo, Consolas, monospace; }
.verdict { margin: 1.2rem 0; padding: .9rem 1.1rem; border-left: 5px solid; background: var(--panel); }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.verdict strong { font-size: 1.15rem; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.verdict.good, .verdict.bad { color: inherit; } .verdict.good strong { color: var(--good); }
.verdict.bad strong { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .7rem; }
.card { background: var(--panel); padding: .7rem .9rem; } .card b { display: block; font-size: 1.25rem; }
.card span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .32rem .6rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; } svg .a { fill: var(--a); } svg .b { fill: var(--b); }
svg .bad { fill: var(--bad); } svg .warn { fill: var(--warn); } svg .grid { stroke: var(--line); }
svg text { font-size: 12px; fill: var(--soft); } svg .name { text-anchor: end; fill: var(--ink); }
.key i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .9em; } .key .a { background: var(--a); }
.key .b { background: var(--b); }
@media print { body { max-width: none; } h2 { break-after: avoid; } }
"""


def page(report: Report) -> str:
    """Return the page."""
    title = f"Migration {report.migration_id}"
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(report.source)} to {escape(", ".join(report.targets))}, {_when(report.started_us)} UTC, '
        f"{_seconds(sum(stage.seconds for stage in report.stages))}</p>",
        *_verdict(report),
        *_counts(report),
        *_recommendations(report),
        *_charts(report),
        *_errors(report),
        *_comparison(report),
        *_baseline(report),
        *_sensitivity(report),
        *_work(report),
        *_changes(report),
        "</body></html>\n",
    ]
    return "".join(parts)


def _verdict(report: Report) -> Iterable[str]:
    confidence = report.confidence
    style, word = ("good", "PASS") if report.ok else ("bad", "FAIL")
    yield f'<div class="verdict {style}"><strong>{word}</strong> '
    yield f"confidence &ge; {confidence.score:.2f} % at 99 % confidence, coverage {_percent(confidence.coverage)}"
    if report.reasons:
        yield f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in report.reasons)}</ul>"
    yield '<p class="soft">This is about fidelity to the source, not about the source being right.</p></div>'
    yield '<div class="cards">'
    for value, name in (
        ("yes" if confidence.reconciled else "no", "every entry accounted for"),
        (_percent(confidence.coverage), "of the rows compared"),
        (_percent(confidence.accuracy_lb), "of the rows faithful, at least"),
        (_percent(confidence.sensitivity_lb), "of seeded faults found, at least"),
        (f"{report.quality_score:.2f}", "quality of the source, of 100"),
        (f"{report.records_per_s:,.0f}/s", "entries of the source"),
        (f"{report.peak_rss_mb:,.0f} MiB", "most memory used"),
    ):
        yield f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
    yield "</div>"


def _counts(report: Report) -> Iterable[str]:
    yield "<h2>What became of every entry</h2>"
    counts = report.counts
    kinds: tuple[tuple[str, Tally], ...] = (
        ("sessions", counts.sessions), ("tool events", counts.tool_events), ("other events", counts.other_events),
    )  # fmt: skip
    yield _table(
        ("", "source", "loaded", "merged", "rejected", "skipped"),
        [(name, *_tally(tally)) for name, tally in (*kinds, ("all", counts.total))],
        numbers=(1, 2, 3, 4, 5),
    )
    yield (
        '<p class="soft">Loaded: new in the target. Merged: told of a fact that another entry told of too. Rejected: in'
        " quarantine. Skipped: known to the target already, or nothing to store of it.</p>"
    )


def _recommendations(report: Report) -> Iterable[str]:
    if report.recommendations:
        yield "<h2>Recommendations</h2>"
        yield _table(
            ("rule", "found", "what must hold", "why", "what to do"),
            [
                (_styled(one.rule, _SEVERITIES[one.severity.value]), f"{one.count:,}", escape(one.what), escape(one.why),
                 escape(one.fix))
                for one in report.recommendations[:_ROWS_MAX]
            ],
            numbers=(1,),
        )  # fmt: skip


def _charts(report: Report) -> Iterable[str]:
    yield "<h2>Events by day</h2>"
    yield '<p class="key soft"><i class="a"></i>source<i class="b"></i>target</p>'
    days, source, target = zip(*report.days, strict=True) if report.days else ((), (), ())
    yield columns([_date(day) for day in days], source, target, "Events by day, source and target")
    yield "<h2>Calls by tool</h2>"
    yield bars([Bar(tool.name, tool.source, f"{tool.source:,}") for tool in report.tools[:15]], "Calls by tool")
    yield "<h2>Sessions by hour of their start (UTC)</h2>"
    hours = [f"{hour:02d}" for hour in range(len(report.hours))]
    yield columns(hours, report.hours, (), "Sessions by hour")
    yield "<h2>Time by stage</h2>"
    yield bars([Bar(stage.name, stage.seconds, f"{stage.seconds:,.2f} s") for stage in report.stages], "Time by stage")


def _errors(report: Report) -> Iterable[str]:
    yield "<h2>Rejected entries, by reason</h2>"
    yield bars([Bar(one.name, one.count, f"{one.count:,}", "bad") for one in report.rejects[:20]], "Rejected entries")
    yield "<h2>Findings, by rule</h2>"
    yield _table(
        ("rule", "severity", "found", "what must hold"),
        [
            (
                escape(one.name),
                _styled(one.severity, _SEVERITIES.get(one.severity, "")),
                f"{one.count:,}",
                escape(one.what),
            )
            for one in report.findings[:_ROWS_MAX]
        ],
        numbers=(2,),
    )


def _changes(report: Report) -> Iterable[str]:
    yield "<h2>What was done to values</h2>"
    yield _table(("note", "times"), [(escape(one.name), f"{one.count:,}") for one in report.notes], numbers=(1,))
    yield f"<details><summary>Entries that became one ({len(report.merges):,} listed)</summary>"
    yield _table(
        ("what", "the one with the word", "others"),
        [(escape(one.kind), _place(one.file, one.line), f"{one.others:,}") for one in report.merges[:_ROWS_MAX]],
        numbers=(2,),
        more=len(report.merges) - _ROWS_MAX,
    )
    yield "</details>"


def _comparison(report: Report) -> Iterable[str]:
    yield "<h2>Source against target</h2>"
    names = ("equal", "missing", "different", "extra", "otherwise", "excluded", "merged", "conflicts")
    yield _table(
        ("", *names),
        [(what, *(f"{getattr(one, name):,}" for name in names)) for what, one in (("events", report.rows), ("records", report.records))],
        numbers=tuple(range(1, 9)),
    )  # fmt: skip
    yield "<h3>Digests (rows, sum of keyed hashes)</h3>"
    yield _table(
        ("table", "source", "target", ""),
        [
            (escape(table), _mono(of["source"]), _mono(of["target"]),
             _styled("equal", "good") if of["source"] == of["target"] else _styled("not equal", "bad"))
            for table, of in report.digests.items()
        ],
    )  # fmt: skip
    yield f'<p class="soft">Compared in {report.cells:,} cells of table, day and tool; {len(report.differing):,} differ.</p>'
    if report.mismatches:
        yield "<h3>Rows that are not the same</h3>"
        yield _table(
            ("how", "table", "day", "tool", "where", "fields"),
            [
                (_styled(one.how, "bad"), escape(one.table), _date(one.day), escape(one.tool), _place(one.file, one.line),
                 escape(", ".join(one.fields)))
                for one in report.mismatches[:_ROWS_MAX]
            ],
            more=len(report.mismatches) - _ROWS_MAX,
        )  # fmt: skip


def _baseline(report: Report) -> Iterable[str]:
    yield "<h2>Baseline metrics</h2>"
    if not report.comparable:
        yield '<p class="soft">Some entries were known before this run, so the target counts more than this run brought.</p>'
    yield _table(
        ("metric", "category", "source", "target", "deviation", "alarm at", ""),
        [
            (escape(one.id), escape(one.category), f"{one.source:,.4g}", f"{one.target:,.4g}",
             "none to give" if one.deviation is None else f"{100 * one.deviation:+.2f} %", f"{one.threshold:g}",
             _styled(one.level, _LEVELS[one.level]))
            for one in report.baseline
        ],
        numbers=(2, 3, 4, 5),
    )  # fmt: skip
    yield _table(
        ("distribution", "measure", "value", "alarm at", ""),
        [
            (escape(one.name), escape(one.measure), f"{one.value:.4g}", f"{one.limit:g}", _styled(one.level, _LEVELS[one.level]))
            for one in report.likenesses
        ],
        numbers=(2, 3),
    )  # fmt: skip
    yield '<p class="soft">Alarms only: the verdict comes from digests and counts.</p>'


def _sensitivity(report: Report) -> Iterable[str]:
    found = report.sensitivity
    yield "<h2>The check, checked</h2>"
    yield (
        f"<p>{found.found:,} of {found.seeded:,} faults that were put into a sample of {found.rows:,} rows on purpose were"
        " found by the same comparison.</p>"
    )
    yield _table(
        ("fault", "put into", "seeded", "found"),
        [
            (escape(kind.name), escape(kind.stage), f"{kind.seeded:,}",
             _styled(f"{kind.found:,}", "good" if kind.found == kind.seeded else "bad"))
            for kind in found.kinds
        ],
        numbers=(2, 3),
    )  # fmt: skip


def _work(report: Report) -> Iterable[str]:
    yield "<h2>Work</h2>"
    yield _table(
        ("stage", "items", "seconds", "per second", "peak memory"),
        [
            (
                escape(one.name),
                f"{one.items:,}",
                f"{one.seconds:,.2f}",
                f"{one.per_s:,.0f}",
                f"{one.peak_rss_mb:,.0f} MiB",
            )
            for one in report.stages
        ],
        numbers=(1, 2, 3, 4),
    )
    yield f"<p>{report.files:,} files of {report.bytes:,} bytes were read"
    yield f"; the second reader used {report.second_reader_rss_mb:,.0f} MiB in a process of its own.</p>"
    if report.ignored:
        yield _table(
            ("files that are no source", "files"),
            [(escape(one.name), f"{one.count:,}") for one in report.ignored],
            numbers=(1,),
        )
    yield "<h3>Slowest tools</h3>"
    yield _table(
        ("tool", "source", "target", "failed", "median", "95 %", "99 %"),
        [
            (escape(tool.name), f"{tool.source:,}", f"{tool.target:,}", f"{tool.failed:,}", _ms(tool.median_ms),
             _ms(tool.p95_ms), _ms(tool.p99_ms))
            for tool in report.tools
        ],
        numbers=(1, 2, 3, 4, 5, 6),
    )  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), more: int = 0) -> str:
    """Return a table; the cells of `rows` are HTML already."""
    if not rows:
        return '<p class="none">none</p>'
    styles = ['class="n"' if place in numbers else "" for place in range(len(head))]
    top = "".join(f"<th {style}>{escape(name)}</th>" for style, name in zip(styles, head, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td {style}>{cell}</td>' for style, cell in zip(styles, row, strict=True))}</tr>"
        for row in rows
    )
    rest = f'<p class="soft">and {more:,} more in report.json</p>' if more > 0 else ""
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>{rest}'


def _tally(tally: Tally) -> tuple[str, ...]:
    return tuple(f"{count:,}" for count in (tally.source, tally.loaded, tally.merged, tally.rejected, tally.skipped))


def _styled(text: str, style: str) -> str:
    return f'<span class="{style}">{escape(text)}</span>' if style else escape(text)


def _mono(text: str) -> str:
    return f'<span class="mono">{escape(text)}</span>'


def _place(file: str, line: int) -> str:
    return _mono(f"{file}:{line}") if file else ""


def _percent(share: float) -> str:
    """Return a share in percent, cut: only all of something is 100 %."""
    return "100 %" if share >= 1 else f"{int(share * 10_000) / 100:.2f} %"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} ms"


def _date(day: int) -> str:
    return "no time" if day < 0 else (_EPOCH + timedelta(days=day)).strftime("%Y-%m-%d")


def _when(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%d %H:%M")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
