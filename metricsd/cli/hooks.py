"""`hooks`: register the capture hook with an AI tool, take it out again, see how it stands, export it as a plugin."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from metricsd.config import find_paths
from metricsd.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK
from metricsd.hooks import installer, report
from metricsd.hooks.places import Level, Places, find_places
from metricsd.hooks.plugin import export_plugin
from metricsd.hooks.registration import TOOL
from metricsd.hooks.survey import Notice

_tool = click.argument("tool", type=click.Choice([TOOL]), default=TOOL)
_level = click.option(
    "--level",
    type=click.Choice([str(level) for level in Level]),
    default=None,
    help="Whose settings: yours for all projects (user, the default), the project's shared ones, or its local ones.",
)
_project = click.option(
    "--project",
    type=click.Path(file_okay=False, path_type=Path),
    help="The project's folder for --level project and local; else the current one.",
)
_settings = click.option(
    "--settings",
    type=click.Path(dir_okay=False, path_type=Path),
    help="One settings file, in place of --level and --project.",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Print the change as a diff and write nothing.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")


@click.group()
def hooks() -> None:
    """Register the capture hook with AI tools."""


@hooks.command()
@_tool
@_level
@_project
@_settings
@_dry_run
@_json
def install(
    tool: str, level: str | None, project: Path | None, settings: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Register the hook; other settings stay as they are, a backup lies beside the file."""
    places, file, at = _find_file(level, project, settings)
    paths = find_paths()
    change = installer.install(installer.find_target(paths, file), dry_run=dry_run)
    notices = report.change_notices(paths, places, os.environ, file, at)
    if as_json or dry_run:
        _print_change(tool, change, dry_run, as_json, notices)
        return
    if not change.changed:
        click.echo(f"{tool}: already installed in {change.settings}")
    else:
        click.echo(f"{tool}: installed in {change.settings}")
        _print_backup(change)
        click.echo("Sessions that run already see it after their next start.")
    _print_notices(notices, err=True)


@hooks.command()
@_tool
@_level
@_project
@_settings
@_dry_run
@_json
def uninstall(
    tool: str, level: str | None, project: Path | None, settings: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Take out exactly our entries; what was recorded stays."""
    places, file, at = _find_file(level, project, settings)
    change = installer.uninstall(installer.find_target(find_paths(), file), dry_run=dry_run)
    if as_json or dry_run:
        _print_change(tool, change, dry_run, as_json, [])
        return
    if change.changed:
        click.echo(f"{tool}: removed from {change.settings}")
        _print_backup(change)
    else:
        click.echo(f"{tool}: not installed in {change.settings}")
    for row in report.rows(find_paths(), places, os.environ):
        if row.registered and row.level != at:
            click.echo(f"  still registered: {row.level}, {row.settings}")


@hooks.command()
@_tool
@_level
@_project
@_settings
@_json
def status(tool: str, level: str | None, project: Path | None, settings: Path | None, as_json: bool) -> int:
    """Show how each level stands; exit 3 when one differs from what install would write, 1 when one is unreadable."""
    places, file, at = _find_file(level, project, settings)
    rows = (
        [report.file_row(find_paths(), file)]
        if settings is not None and at is None
        else report.rows(find_paths(), places, os.environ)
    )
    if level is not None or settings is not None:
        rows = [row for row in rows if row.level in (at, report.FILE_LEVEL)]
    if as_json:
        click.echo(json.dumps([_row_json(tool, row) for row in rows], indent=1))
    else:
        _print_rows(tool, rows)
    if any(row.error for row in rows):
        return EXIT_FAILED
    return EXIT_DEGRADED if any(row.state == installer.State.DIFFERS for row in rows) else EXIT_OK


@hooks.command("export-plugin")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@_json
def export(folder: Path, as_json: bool) -> None:
    """Write the hook as a plugin folder of Claude Code into DIR, in place of entries in settings."""
    exported = export_plugin(folder)
    without_home = {name: value for name, value in os.environ.items() if name != "METRICSD_HOME"}
    notices = report.plugin_notices(find_paths(), find_places(), os.environ, find_paths(without_home).spool)
    if as_json:
        found = {"folder": str(exported.folder), "changed": [str(file) for file in exported.changed]}
        click.echo(json.dumps({**found, "notices": _notices_json(notices)}, indent=1))
        return
    how = "written to" if exported.changed else "already written to"
    click.echo(f"plugin: {how} {exported.folder}")
    if exported.folder.parent != find_places().config_folder / "skills":
        click.echo(f"Try it: claude --plugin-dir {exported.folder}")
    _print_notices(notices, err=True)


def _find_file(level: str | None, project: Path | None, settings: Path | None) -> tuple[Places, Path, Level | None]:
    """Return the places seen from the project, the settings file that is meant, and its level if it has one."""
    if settings is not None and (level is not None or project is not None):
        raise click.UsageError("--settings names one file: leave out --level and --project")
    if project is not None and not project.is_dir():
        raise click.UsageError(f"--project: {project}: no such folder")
    places = find_places(folder=project)
    if settings is not None:
        file = settings.expanduser().absolute()
        return places, file, report.find_level(places, file)
    found = Level(level or Level.USER)
    return places, places.settings(found), found


def _print_change(tool: str, change: installer.Change, dry_run: bool, as_json: bool, notices: Iterable[Notice]) -> None:
    if not as_json:
        click.echo(change.diff, nl=False)
        if not change.diff:
            click.echo(f"{tool}: nothing to change in {change.settings}")
        if change.capture_changed:
            click.echo(f"{tool}: would copy the program to {change.capture}")
        _print_notices(notices, err=True)
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
                "notices": _notices_json(notices),
            },
            indent=1,
        )
    )


def _print_backup(change: installer.Change) -> None:
    if change.backup is not None:
        click.echo(f"The file as it was: {change.backup}")


def _print_notices(notices: Iterable[Notice], *, err: bool = False) -> None:
    for notice in dict.fromkeys(notices):
        click.echo(f"  warning: {notice.says}", err=err)


def _notices_json(notices: Iterable[Notice]) -> list[dict[str, str]]:
    return [notice._asdict() for notice in notices]


def _row_json(tool: str, row: report.Row) -> dict[str, Any]:
    found = row.registration
    return {
        "tool": tool,
        "level": row.level,
        "state": row.state,
        "settings": row.settings,
        "events": {} if found is None else dict(found.events),
        "commands": [] if found is None else list(found.commands),
        "capture": None if found is None else str(found.capture),
        "capture_state": None if found is None else found.capture_state,
        "disabled": found is not None and found.disabled,
        "error": row.error,
        "notices": _notices_json(row.notices),
    }


def _print_rows(tool: str, rows: list[report.Row]) -> None:
    """Print the rows that say something: what is registered, what is broken, and the first if that is none."""
    told = [row for row in rows if row.registered or row.error or row.notices]
    for row in told or rows[:1]:
        if row.error:
            click.echo(f"{tool}: {row.state}: {row.error}")
        else:
            click.echo(f"{tool}: {row.state} in {row.settings} ({row.level})")
        if row.registration is not None and row.state == installer.State.DIFFERS:
            _print_differences(tool, row.level, row.registration)
    if not any(row.registered for row in rows):
        click.echo(f"  register it: metricsd hooks install {tool}")
    _print_notices(notice for row in rows for notice in row.notices)


def _print_differences(tool: str, level: str, found: installer.Registration) -> None:
    for event, how in found.events.items():
        if how != "ok":
            click.echo(f"  {event}: {how}")
    for command in found.commands:
        if command != str(found.capture):
            click.echo(f"  runs {command} instead of {found.capture}")
    if found.capture_state != "ok":
        click.echo(f"  {found.capture}: {found.capture_state}")
    where = f"--settings {found.settings}" if level == report.FILE_LEVEL else f"--level {level}"
    click.echo(f"  repair it: metricsd hooks install {tool} {where}")
