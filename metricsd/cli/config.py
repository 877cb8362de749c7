"""`config`: every setting with its value, unit and origin, and a check of the files."""

from __future__ import annotations

import json

import click

from metricsd.config import RULES, SYSTEM_CONFIG, find_paths, load_config, settings_of


@click.group()
def config() -> None:
    """Show and check the settings."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; fields are only added.")
def show(as_json: bool) -> None:
    """Print every setting in force: value, unit, and the file or variable that set it."""
    paths = find_paths()
    settings = load_config(paths)
    rows = [
        {
            "key": key,
            "value": value,
            "unit": RULES[key].unit,
            "origin": settings.origin.get(key, "default"),
            "meaning": RULES[key].meaning,
        }
        for key, value in settings_of(settings).items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo(f"file: {paths.config_file}{'' if paths.config_file.exists() else ' (none yet)'}")
    width = max(len(str(row["key"])) for row in rows)
    values = [json.dumps(row["value"]) for row in rows]
    value_width = max(len(value) for value in values)
    for row, value in zip(rows, values, strict=True):
        click.echo(f"{row['key']:{width}}  {value:{value_width}}  {row['unit']:12}  {row['origin']}".rstrip())


@config.command()
def check() -> None:
    """Check the files and variables; exit 2 with file, line and key when one is wrong."""
    paths = find_paths()
    settings = load_config(paths)
    looked = (
        ", ".join(str(file) for file in (SYSTEM_CONFIG, paths.config_file) if file.exists()) or "no file, defaults only"
    )
    click.echo(f"ok: {len(settings.origin)} settings changed from their defaults ({looked})")
