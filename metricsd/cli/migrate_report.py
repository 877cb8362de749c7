"""`metricsd migrate report` and `verify`: what a migration came to, and whether that is still so.

A report says what was found when it was made. `verify` reads source and target again and makes it anew.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from metricsd.cli.migrate_progress import Teller
from metricsd.cli.migrate_run import make_runner, print_summary, printable
from metricsd.cli.table import write_json
from metricsd.config import find_paths, load_config
from metricsd.errors import EXIT_FAILED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from metricsd.migration.state import RunFolder

SHOWN_MAX = 20
"""Rejected entries that are shown of a run without a report; `--rejects` lists all."""


@click.command()
@click.argument("run_id", metavar="ID")
@click.option("--rejects", is_flag=True, help="List every rejected entry: file, line, reason.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def report(run_id: str, rejects: bool, as_json: bool) -> int:
    """Show what a migration came to: the verdict with its numbers, counts, what to do, where the whole report lies.

    Exit codes: 0 it passed, 1 it did not, or it is not done.
    """
    from metricsd.migration import report as reports
    from metricsd.migration import state
    from metricsd.migration.report_text import lines

    folder = state.find(find_paths(), run_id)
    if rejects:
        return _list_rejects(folder, as_json)
    try:
        found = reports.read(folder.report)
    except UsageError:
        return _unreported(folder, as_json)
    if as_json:
        click.echo((folder.report / reports.JSON).read_text())
    else:
        for line in lines(found):
            click.echo(printable(line))
        click.echo(f"\nfor a browser: {folder.report / reports.HTML}")
    return EXIT_OK if found.ok else EXIT_FAILED


@click.command()
@click.argument("run_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines; the last one is the summary.")
def verify(run_id: str, as_json: bool) -> int:
    """Read source and target again, compare them as they are now, and write the report anew; nothing else is changed.

    Exit codes: 0 it passed, 1 it did not.
    """
    from metricsd.logs import log_to_terminal
    from metricsd.migration import state

    paths = find_paths()
    config = load_config(paths)
    folder = state.find(paths, run_id)
    log_to_terminal("error")
    with folder.locked(), Teller(as_json=as_json) as teller:
        run = folder.read()
        if run.state is state.RunState.ROLLED_BACK:
            raise UsageError(
                f"migration {run.id} is rolled back, so nothing of it counts: `metricsd migrate status {run.id}` names the"
                " rollback, which can be rolled back itself"
            )
        summary = make_runner(paths, config, (folder, run), teller, asks=False).verify()
    print_summary(summary, as_json)
    return EXIT_OK if summary.ok else EXIT_FAILED


def _unreported(folder: RunFolder, as_json: bool) -> int:
    """Show what is known of a run that has no report: it waits, or it ended before its time."""
    run = folder.read()
    rows = _rejects(folder)
    counts = Counter(row["reason"] for row in rows)
    if as_json:
        write_json([{"reason": reason, "entries": count} for reason, count in counts.most_common()], sys.stdout)
        return EXIT_FAILED
    click.echo(f"migration {run.id}: {run.state.value}, no report yet")
    if run.reason:
        click.echo(run.reason)
    for reason, count in counts.most_common():
        click.echo(f"{count:>8} {reason}")
    for row in rows[:SHOWN_MAX]:
        click.echo(f"  {printable(row['file'])}:{row['line']} {row['reason']} {printable(row['detail'])}".rstrip())
    if len(rows) > SHOWN_MAX:
        click.echo(f"  and {len(rows) - SHOWN_MAX} more: `metricsd migrate report {run.id} --rejects`")
    return EXIT_FAILED


def _list_rejects(folder: RunFolder, as_json: bool) -> int:
    rows = _rejects(folder)
    if as_json:
        write_json(rows, sys.stdout)
        return EXIT_OK
    for row in rows:
        click.echo(f"{printable(row['file'])}:{row['line']} {row['reason']} {printable(row['detail'])}".rstrip())
    return EXIT_OK


def _rejects(folder: RunFolder) -> list[dict[str, Any]]:
    from metricsd.migration.ledger import read_ledger

    return [
        {"file": line.file, "line": line.line, "offset": line.offset, "reason": line.code, "detail": line.detail}
        for line in read_ledger(folder.ledger)
        if line.entry == "reject"
    ]
