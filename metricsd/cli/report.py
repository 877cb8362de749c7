"""`report`: what was done by day, week, tool, project or session, and tokens by model, read from totals.

Days are the user's local days and the output says in which time zone. Retracted imports and deleted sessions do not
count; calls that arrived added up do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import click

from metricsd.analytics import baseline, efficiency, periods, score, tools, velocity
from metricsd.cli.names import Names
from metricsd.cli.spans import parse_span
from metricsd.cli.table import Row, clean, duration_text, percent_text, text_table, write_csv, write_json
from metricsd.config import find_paths
from metricsd.errors import EXIT_OK, UsageError
from metricsd.store import session_totals, token_totals
from metricsd.store.calendar import date_of
from metricsd.store.summary import ALL_DAYS, DAY_MAX, Summary, reading
from metricsd.totals import SessionTotal

KINDS = ("daily", "weekly", "tools", "projects", "sessions", "tokens")
ALL = "all"
_US_PER_S = 1_000_000
_SPAN_DAYS_MAX = 36_500
_PERIOD_HEADERS = ("events", "sessions", "prompts", "calls", "failed", "p50", "p95", "lines +", "lines -")
_USE_HEADERS = ("calls", "share", "failed", "mean", "p50", "p95", "lines +", "lines -")
_TOKEN_HEADERS = ("day", "model", "requests", "input", "output", "cache write", "cache read")
_SESSION_HEADERS = ("id", "project", "began", "length", "calls", "failed", "lines +", "lines -", "score")


class Report(NamedTuple):
    """A report for programs (documents) and for people (texts); only the one that is asked for is made."""

    documents: Iterable[Row]
    columns: Sequence[str]
    headers: Sequence[str]
    texts: Iterable[Sequence[str]]
    left: int = 1


@click.command()
@click.argument("kind", type=click.Choice(KINDS), default="daily")
@click.option(
    "--since",
    metavar="SPAN",
    default=ALL,
    help="Only this time, for example 7d, from the start of that day; `all` (the default).",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; fields are only added.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def report(kind: str, since: str, as_json: bool, as_csv: bool) -> int:
    """Report by day (`daily`), week, tool, project or session, or tokens; days are local, the newest last."""
    if as_json and as_csv:
        raise UsageError("--json and --csv: give one of them")
    paths = find_paths()
    names = Names(paths)
    with reading(paths.store, address=names.need_address) as summary:
        days = days_since(summary, since)
        found = _MAKERS[kind](summary, days, names)
        zone = zone_name(summary)
    if as_json:
        write_json(({**row, "zone": zone} for row in found.documents), sys.stdout)
    elif as_csv:
        write_csv(({**row, "zone": zone} for row in found.documents), [*found.columns, "zone"], sys.stdout)
    else:
        click.echo(f"{kind}, days in {clean(zone)}{'' if since == ALL else f', since {date_of(days[0])}'}")
        texts = list(found.texts)
        click.echo(text_table(texts, found.headers, left=found.left) if texts else "nothing recorded")
    return EXIT_OK


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def today(as_json: bool) -> int:
    """Show what was done since midnight, by your clock."""
    from metricsd.cli.today import run_today

    return run_today(as_json=as_json)


def days_since(summary: Summary, since: str) -> tuple[int, int]:
    """Return the local days of a span that ends now: from the start of the day on which it begins."""
    if since == ALL:
        return ALL_DAYS
    span = parse_span(since, "--since")
    if span > timedelta(days=_SPAN_DAYS_MAX):
        return ALL_DAYS
    begin = datetime.now(UTC) - span
    return summary.days.of(int(begin.timestamp() * _US_PER_S)), DAY_MAX


def zone_name(summary: Summary) -> str:
    """Return the name of the zone that days are in; where it has none, its offset now."""
    if summary.days.name:
        return summary.days.name
    return datetime.now().astimezone().strftime("UTC%z")


def _daily(summary: Summary, days: tuple[int, int], _: Names) -> Report:
    found = periods.daily(summary.cells("day", "kind", "bucket", days=days), session_totals.starts(summary, days))
    return _of_periods("day", [(str(date_of(one.day)), {"day": str(date_of(one.day))}, one) for one in found])


def _weekly(summary: Summary, days: tuple[int, int], _: Names) -> Report:
    # A week is whole: a span that begins on its Thursday takes its Monday along.
    days = (periods.week_of(days[0]) if days != ALL_DAYS else days[0], days[1])
    found = periods.weekly(summary.cells("day", "kind", "bucket", days=days), session_totals.starts(summary, days))
    rows = []
    for one in found:
        first, last = date_of(one.day), date_of(one.day + periods.DAYS_PER_WEEK - 1)
        year, week, _weekday = first.isocalendar()
        rows.append((f"{first} to {last}", {"week": f"{year}-W{week:02d}", "from": str(first), "to": str(last)}, one))
    return _of_periods("week", rows)


def _of_periods(title: str, rows: Sequence[tuple[str, dict[str, str], periods.Period]]) -> Report:
    documents = [label | period_document(one) for _, label, one in rows]
    names = ("day",) if title == "day" else ("week", "from", "to")
    texts = [
        (
            text, f"{one.events:,}", f"{one.sessions:,}", f"{one.prompts:,}", f"{one.tool_calls:,}",
            f"{one.tool_failures:,}", duration_text(one.p50_ms), duration_text(one.p95_ms),
            f"{one.lines_added:,}", f"{one.lines_removed:,}",
        )
        for text, _, one in rows
    ]  # fmt: skip
    return Report(documents, (*names, *_PERIOD_COLUMNS), (title, *_PERIOD_HEADERS), texts)


def period_document(one: periods.Period) -> dict[str, Any]:
    """Return the JSON form of a period without its dates; numbers are rounded to what they can say."""
    found = {name: value for name, value in one._asdict().items() if name != "day"}
    found["error_rate"] = round(one.error_rate, 4)
    return found | {name: _tenths(found[name]) for name in ("mean_ms", "p50_ms", "p95_ms")}


def _tools(summary: Summary, days: tuple[int, int], names: Names) -> Report:
    cells = names.plain_cells(summary.cells("tool", "kind", "bucket", days=days))
    return _of_uses("tool", tools.by_tool(cells))


def _projects(summary: Summary, days: tuple[int, int], names: Names) -> Report:
    cells = names.plain_cells(summary.cells("project", "kind", "bucket", days=days))
    return _of_uses("project", tools.by_project(cells))


def _of_uses(title: str, uses: Sequence[tools.Use]) -> Report:
    documents = []
    for use in uses:
        document = {title: use.name} | {name: value for name, value in use._asdict().items() if name != "name"}
        document |= {name: round(document[name], 4) for name in ("error_rate", "share")}
        documents.append(
            document | {name: _tenths(document[name]) for name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms")}
        )
    texts = [
        (
            use.name or "-", f"{use.calls:,}", percent_text(use.share), percent_text(use.error_rate),
            duration_text(use.mean_ms), duration_text(use.p50_ms), duration_text(use.p95_ms),
            f"{use.lines_added:,}", f"{use.lines_removed:,}",
        )
        for use in uses
    ]  # fmt: skip
    return Report(documents, (title, *tools.Use._fields[1:]), (title, *_USE_HEADERS), texts)


def _tokens(summary: Summary, days: tuple[int, int], _: Names) -> Report:
    found = token_totals.read(summary, days)
    documents = [{**one._asdict(), "day": str(date_of(one.day))} for one in found]
    texts = [(str(date_of(one.day)), one.model or "-", *(f"{number:,}" for number in one[2:])) for one in found]
    return Report(documents, token_totals.TokenDay._fields, _TOKEN_HEADERS, texts, left=2)


def _sessions(summary: Summary, days: tuple[int, int], names: Names) -> Report:
    since_us = 0 if days == ALL_DAYS else summary.days.start_us(days[0])
    found = session_totals.read(summary, address=names.address)
    # The pace that a session is measured against does not depend on how many are shown.
    usual = baseline.baseline(found)
    found = [one for one in found if one.last_at >= since_us]
    projects = names.plain_projects({one.project for one in found})
    # The oldest first, as in the other reports, so that the newest stand above the prompt.
    found = [one._replace(project=projects.get(one.project, one.project)) for one in reversed(found)]
    documents, texts = _session_documents(found, usual), _session_texts(found, usual)
    return Report(documents, _SESSION_COLUMNS, _SESSION_HEADERS, texts, left=3)


def _session_documents(found: Iterable[SessionTotal], usual: baseline.Baseline) -> Iterator[dict[str, Any]]:
    for one in found:
        yield {
            "id": one.id,
            "app": one.app,
            "project": one.project,
            "branch": one.branch,
            "model": one.model,
            "started_at": _when(one.started_at),
            "last_at": _when(one.last_at),
            "ended_at": _when(one.ended_at),
            "end_reason": one.end_reason,
            "duration_s": round(velocity.hours_of(one) * 3600, 3),
            "tool_calls": one.tool_calls,
            "tool_failures": one.tool_failures,
            "error_rate": round(1 - efficiency.efficiency_of(one), 4),
            "tool_ms": one.tool_ms,
            "prompts": one.prompts,
            "turns": one.turns,
            "agents": one.agents,
            "lines_added": one.lines_added,
            "lines_removed": one.lines_removed,
            "score": round(score.percent_score(one, usual), 1),
            "score_by_hand": one.score is not None,
            "description": one.description,
            "tags": list(one.tags),
        }


def _session_texts(found: Iterable[SessionTotal], usual: baseline.Baseline) -> Iterator[Sequence[str]]:
    for one in found:
        yield (
            one.id,
            one.project or "-",
            _local(one.started_at),
            duration_text(velocity.hours_of(one) * 3_600_000),
            f"{one.tool_calls:,}",
            f"{one.tool_failures:,}",
            f"{one.lines_added:,}",
            f"{one.lines_removed:,}",
            f"{score.percent_score(one, usual):.0f}",
        )


_MAKERS = {
    "daily": _daily,
    "weekly": _weekly,
    "tools": _tools,
    "projects": _projects,
    "sessions": _sessions,
    "tokens": _tokens,
}
_PERIOD_COLUMNS = periods.Period._fields[1:]
_SESSION_COLUMNS = (
    "id", "app", "project", "branch", "model", "started_at", "last_at", "ended_at", "end_reason", "duration_s",
    "tool_calls", "tool_failures", "error_rate", "tool_ms", "prompts", "turns", "agents", "lines_added",
    "lines_removed", "score", "score_by_hand", "description", "tags",
)  # fmt: skip


def _tenths(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _local(micros: int) -> str:
    try:
        return datetime.fromtimestamp(micros / _US_PER_S).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return "-"


def _when(micros: int | None) -> str | None:
    """Return microseconds UTC as RFC 3339."""
    if not micros:
        return None
    try:
        at = datetime.fromtimestamp(micros / _US_PER_S, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
