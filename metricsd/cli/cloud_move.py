"""`metricsd cloud migrate SOURCE TARGET`: move an embedded cloud to PostgreSQL, compared row by row."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click
import msgspec

from metricsd.cli.cloud_options import actor, json_option, open_backend, open_postgres
from metricsd.errors import UsageError

if TYPE_CHECKING:
    from metricsd.cloud.move import Moved

COPY_TIMEOUT_S = 6 * 3600.0
"""One tenant is one transaction, and its largest table one statement."""


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@json_option
def migrate(source: str, target: str, as_json: bool) -> None:
    """Move an embedded cloud (sqlite:/absolute/folder) to PostgreSQL (postgresql://...).

    Stop its server first. Tokens and cursors stay good: start a server on TARGET under the same address and devices go
    on. What was stopped halfway goes on when the command is repeated; a tenant is there whole or not at all.
    """
    from metricsd.cloud.pg_names import is_postgres

    if is_postgres(source) or not is_postgres(target):
        raise UsageError("write: metricsd cloud migrate sqlite:/absolute/folder postgresql://USER@HOST/DATABASE")
    moved = asyncio.run(_move(source, target, as_json))
    from metricsd.cloud.move import totals

    if as_json:
        rows = [msgspec.to_builtins(each) for each in moved]
        click.echo(json.dumps({"ok": True, **totals(moved), "results": rows}))
        return
    sums = totals(moved)
    click.echo(
        f"{sums['tenants']} tenants with {sums['events']} events and {sums['records']} records are in the target;"
        " every row was compared. Serve the target under the old address, and never the old folder again."
    )


async def _move(source: str, target: str, as_json: bool) -> list[Moved]:
    from metricsd.clock import SystemClock
    from metricsd.cloud.move import move_cloud
    from metricsd.cloud.sqlite import SqliteBackend, folder_of

    folder = folder_of(source)
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    there = open_postgres(target, timeout_s=COPY_TIMEOUT_S)
    here = open_backend(source)
    done = []
    try:
        if not isinstance(here, SqliteBackend):
            raise UsageError("SOURCE is sqlite:/absolute/folder")
        async for each in move_cloud(here, folder, there, SystemClock(), actor=actor()):
            done.append(each)
            if not as_json:
                how = "was there already, equal" if each.already else f"moved, digest {each.digest}"
                click.echo(f"{each.tenant}: {each.rows['event']} events, {each.rows['record']} records {how}", err=True)
    finally:
        await here.close()
        await there.close()
    return done
