"""`metricsd cloud migrate-schema`: bring the schemas of all tenants up to date, with progress, as often as needed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click
import msgspec

from metricsd.cli.cloud_options import database_option, json_option, open_postgres
from metricsd.errors import EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from metricsd.cloud.upgrade import Upgraded

STEP_TIMEOUT_S = 3600.0
"""A step may build an index over years of a tenant's events."""


@click.command("migrate-schema")
@database_option
@json_option
def migrate_schema(database: str | None, as_json: bool) -> None:
    """Bring every tenant's schema up to date; may be stopped and repeated."""
    done = asyncio.run(_migrate(database, as_json))
    failed = [each for each in done if each.error is not None]
    steps = sum(each.steps for each in done)
    if as_json:
        rows = [msgspec.to_builtins(each) for each in done]
        click.echo(json.dumps({"ok": not failed, "tenants": len(done), "steps": steps, "results": rows}))
    else:
        click.echo(f"{len(done) - len(failed)} of {len(done)} tenants are up to date; {steps} steps were run")
        if failed:
            click.echo("run it again for the others; they are served or refused by the step they are on", err=True)
    if failed:
        raise SystemExit(EXIT_FAILED)


async def _migrate(database: str | None, as_json: bool) -> list[Upgraded]:
    from metricsd.cloud.pg_names import is_postgres
    from metricsd.cloud.upgrade import upgrade_all

    if database is None or not is_postgres(database):
        raise UsageError("an embedded cloud brings its files up to date itself when it opens them")
    backend = open_postgres(database, timeout_s=STEP_TIMEOUT_S)
    try:
        done = []
        async for each in upgrade_all(backend, backend):
            done.append(each)
            if not as_json and (each.steps or each.error):
                click.echo(f"{each.number}/{each.of} {each.tenant}: {each.error or f'{each.steps} steps'}", err=True)
        return done
    finally:
        await backend.close()
