"""`logs`: the daemon's log as people read it, or as the JSON lines that it is."""

from __future__ import annotations

import click

from metricsd.config import find_paths
from metricsd.logs import follow_log, read_log, text_of


@click.command()
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, 1_000_000),
    default=50,
    show_default=True,
    help="How many lines, newest last.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on showing lines as they are written; Ctrl-C ends it.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; with --follow one JSON object a line.")
def logs(lines: int, follow: bool, as_json: bool) -> None:
    """Show the daemon's log."""
    file = find_paths().log_file
    found = read_log(file, lines)
    if as_json and not follow:
        click.echo("[" + ",\n".join(line for line in found if line.startswith("{")) + "]")
        return
    for line in found:
        click.echo(line if as_json else text_of(line))
    if not found and not follow:
        click.echo(f"nothing logged yet ({file})", err=True)
    if follow:
        for line in follow_log(file):
            click.echo(line if as_json else text_of(line))
