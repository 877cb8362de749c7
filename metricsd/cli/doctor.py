"""`doctor`: looks at everything from the hook to the cloud, a line each, with the one thing to do.

What the user did not set up is never a failure. `--fix` repairs what is ours and safe to repair, then looks again.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from metricsd.cli.status import gather
from metricsd.cli.updown import start_daemon
from metricsd.config import Config, Paths, find_paths, load_config
from metricsd.doctor.examine import examine, is_well, repair
from metricsd.doctor.finding import Facts, Finding, Level, fail
from metricsd.errors import EXIT_FAILED, EXIT_OK, ConfigError
from metricsd.hooks.places import find_places

_WORDS = {Level.OK: "ok", Level.WARN: "warn", Level.FAIL: "FAIL", Level.NOT_USED: "-"}
_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red", Level.NOT_USED: "bright_black"}
_INDENT = " " * 19


@click.command()
@click.option("--fix", is_flag=True, help="Repair what is ours to repair, then look again.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; fields are only added.")
def doctor(fix: bool, as_json: bool) -> int:
    """Look at everything from the hook to the cloud; exit 1 when something that you set up does not work."""
    paths = find_paths()
    try:
        config = load_config(paths)
    except ConfigError as error:
        # Everything else hangs on the settings, so there is nothing more to say that would be true.
        return _tell([fail("settings", str(error), "correct the line; metricsd config check looks again")], [], as_json)
    found = _look(paths, config)
    done = repair(found) if fix else []
    return _tell(_look(paths, config) if done else found, done, as_json)


def _look(paths: Paths, config: Config) -> list[Finding]:
    return examine(
        Facts(
            paths=paths,
            config=config,
            environ=os.environ,
            places=find_places(),
            status=gather(paths, config),
            start=lambda: start_daemon(paths),
        )
    )


def _tell(found: Sequence[Finding], done: Sequence[str], as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps([_fields(finding) for finding in found], indent=1, ensure_ascii=False))
        for line in done:
            click.echo(line, err=True)
    else:
        for line in done:
            click.echo(line)
        told: set[str] = set()
        for finding in found:
            # One command often mends several lines; naming it once is enough.
            _print(finding, with_fix=finding.fix not in told)
            told.add(finding.fix)
        _print_sum(found)
    return EXIT_OK if is_well(found) else EXIT_FAILED


def _fields(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "level": str(finding.level),
        "says": finding.says,
        "fix": finding.fix or None,
        "fixable": finding.repair is not None,
    }


def _print(finding: Finding, *, with_fix: bool) -> None:
    word = f"{_WORDS[finding.level]:4}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        word = click.style(word, fg=_COLOURS[finding.level])
    click.echo(f"{word} {finding.check:13} {finding.says}")
    if with_fix and finding.fix and finding.level is not Level.OK:
        click.echo(f"{_INDENT}do: {finding.fix}")


def _print_sum(found: Sequence[Finding]) -> None:
    count = Counter(finding.level for finding in found)
    click.echo(
        f"\n{count[Level.OK]} ok, {count[Level.WARN]} to look at, {count[Level.FAIL]} broken, "
        f"{count[Level.NOT_USED]} not used"
    )
    if any(finding.repair is not None for finding in found):
        click.echo("`metricsd doctor --fix` repairs what it can")
