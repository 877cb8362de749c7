"""`hooks`: register the capture hook with an AI tool, take it out again, see how it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from metricsd.config import find_paths
from metricsd.errors import EXIT_DEGRADED, EXIT_OK
from metricsd.hooks import installer
from metricsd.hooks.registration import TOOL

_tool = click.argument("tool", type=click.Choice([TOOL]), default=TOOL)
_settings = click.option(
    "--settings",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Another settings file than the user's own ($CLAUDE_CONFIG_DIR or ~/.claude).",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Print the change as a diff and write nothing.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")


@click.group()
def hooks() -> None:
    """Register the capture hook with AI tools."""


@hooks.command()
@_tool
@_settings
@_dry_run
@_json
def install(tool: str, settings: Path | None, dry_run: bool, as_json: bool) -> None:
    """Register the hook; other settings stay as they are, a backup lies beside the file."""
    change = installer.install(installer.find_target(find_paths(), settings=settings), dry_run=dry_run)
    if as_json or dry_run:
        _print_change(tool, change, dry_run, as_json)
    elif not change.changed:
        click.echo(f"{tool}: already installed in {change.settings}")
    else:
        click.echo(f"{tool}: installed in {change.settings}")
        _print_backup(change)
        click.echo("Sessions that run already see it after their next start.")


@hooks.command()
@_tool
@_settings
@_dry_run
@_json
def uninstall(tool: str, settings: Path | None, dry_run: bool, as_json: bool) -> None:
    """Take out exactly our entries; what was recorded stays."""
    change = installer.uninstall(installer.find_target(find_paths(), settings=settings), dry_run=dry_run)
    if as_json or dry_run:
        _print_change(tool, change, dry_run, as_json)
    elif not change.changed:
        click.echo(f"{tool}: not installed in {change.settings}")
    else:
        click.echo(f"{tool}: removed from {change.settings}")
        _print_backup(change)


@hooks.command()
@_tool
@_settings
@_json
def status(tool: str, settings: Path | None, as_json: bool) -> int:
    """Show how the registration stands; exit 3 when it differs from what install would write."""
    found = installer.status(installer.find_target(find_paths(), settings=settings))
    if as_json:
        click.echo(json.dumps([_status_json(tool, found)], indent=1))
    else:
        _print_status(tool, found)
    return EXIT_DEGRADED if found.state is installer.State.DIFFERS else EXIT_OK


def _print_change(tool: str, change: installer.Change, dry_run: bool, as_json: bool) -> None:
    if not as_json:
        click.echo(change.diff, nl=False)
        if not change.diff:
            click.echo(f"{tool}: nothing to change in {change.settings}")
        if change.capture_changed:
            click.echo(f"{tool}: would copy the program to {change.capture}")
        return
    click.echo(
        json.dumps(
            {
                "tool": tool,
                "changed": change.changed,
                "dry_run": dry_run,
                "settings": str(change.settings),
                "backup": None if change.backup is None else str(change.backup),
                "capture": str(change.capture),
                "capture_changed": change.capture_changed,
                "diff": change.diff,
            },
            indent=1,
        )
    )


def _print_backup(change: installer.Change) -> None:
    if change.backup is not None:
        click.echo(f"The file as it was: {change.backup}")


def _status_json(tool: str, found: installer.Registration) -> dict[str, Any]:
    return {
        "tool": tool,
        "state": str(found.state),
        "settings": str(found.settings),
        "events": dict(found.events),
        "commands": list(found.commands),
        "capture": str(found.capture),
        "capture_state": found.capture_state,
        "disabled": found.disabled,
    }


def _print_status(tool: str, found: installer.Registration) -> None:
    click.echo(f"{tool}: {found.state} in {found.settings}")
    if found.disabled:
        click.echo("  `disableAllHooks` is on in this file: the tool runs no hook until you remove it")
    if found.state is installer.State.NOT_INSTALLED:
        click.echo(f"  register it: metricsd hooks install {tool}")
    if found.state is not installer.State.DIFFERS:
        return
    for event, how in found.events.items():
        if how != "ok":
            click.echo(f"  {event}: {how}")
    for command in found.commands:
        if command != str(found.capture):
            click.echo(f"  runs {command} instead of {found.capture}")
    if found.capture_state != "ok":
        click.echo(f"  {found.capture}: {found.capture_state}")
    click.echo(f"  repair it: metricsd hooks install {tool}")
