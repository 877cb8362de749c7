"""`metricsd cloud tenant`: organisations whose data is kept apart, from their making to their end.

Suspending shuts a tenant out and touches nothing; dropping removes everything for good and therefore asks for --yes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import IO

import click

from metricsd.cli.cloud_options import (
    actor,
    database_option,
    json_option,
    open_backend,
    open_postgres,
    print_done,
    print_rows,
    when,
    when_or_none,
    with_backend,
)
from metricsd.clock import SystemClock
from metricsd.errors import UsageError


@click.group()
def tenant() -> None:
    """Organisations whose data is kept apart."""


@tenant.command("create")
@click.argument("name")
@click.option("--server", metavar="URL", help="PostgreSQL: the server that holds its data, if not the directory's.")
@database_option
@json_option
def tenant_create(name: str, server: str | None, database: str | None, as_json: bool) -> None:
    """Make a tenant."""
    from metricsd.cloud.tenants import create_tenant

    made = with_backend(
        database,
        lambda backend: create_tenant(backend.directory, name, SystemClock(), actor=actor(), server=server),
    )
    row = {"name": made.name, "id": made.id, "created_at": when(made.created_at)}
    print_done(
        row, as_json, f"tenant {made.name} made; next: metricsd cloud enrol --tenant {made.name} --user NAME"
    )  # fmt: skip


@tenant.command("list")
@database_option
@json_option
def tenant_list(database: str | None, as_json: bool) -> None:
    """List the tenants."""
    rows = [
        {
            "name": found.name, "id": found.id, "created_at": when(found.created_at),
            "suspended_at": when_or_none(found.suspended_at),
        }
        for found in with_backend(database, lambda backend: backend.directory.list_tenants())
    ]  # fmt: skip
    print_rows(rows, as_json, "no tenants; make one with `metricsd cloud tenant create NAME`")


@tenant.command("retain")
@click.argument("name")
@click.option("--days", type=click.IntRange(0, 36_500), required=True, help="0 keeps events for ever.")
@click.option("--yes", is_flag=True, help="Go by the clocks here even where they may be wrong.")
@database_option
@json_option
def tenant_retain(name: str, days: int, yes: bool, database: str | None, as_json: bool) -> None:
    """Say for how many days a tenant's events are kept (PostgreSQL), and drop what is older."""
    from metricsd.cloud.access import Act
    from metricsd.cloud.pg_names import is_postgres
    from metricsd.cloud.tenants import get_tenant

    if database is None or not is_postgres(database):
        raise UsageError("an embedded cloud keeps every event: give --database postgresql://...")
    backend = open_postgres(database)

    async def run() -> int:
        try:
            tenant = await get_tenant(backend.directory, name)
            act = Act(
                actor=actor(), action="tenant.retention_set", tenant=name, subject=tenant.id,
                at=SystemClock().now_us(), detail={"days": str(days)},
            )  # fmt: skip
            return await backend.retain(tenant, days, act, sure=yes)
        finally:
            await backend.close()

    dropped = asyncio.run(run())
    print_done(
        {"tenant": name, "retention_days": days, "dropped_events": dropped}, as_json,
        f"events of {name} are kept for {days} days; {dropped} were dropped" if days else f"events of {name} are kept",
    )  # fmt: skip


@tenant.command("suspend")
@click.argument("name")
@database_option
@json_option
def tenant_suspend(name: str, database: str | None, as_json: bool) -> None:
    """Shut a tenant out, now and on every process; its data stays as it is."""
    from metricsd.cloud.tenants import suspend_tenant

    found = with_backend(
        database, lambda backend: suspend_tenant(backend.directory, name, SystemClock(), actor=actor())
    )
    row = {"name": name, "id": found.id, "suspended_at": when_or_none(found.suspended_at)}
    print_done(row, as_json, f"tenant {name} is suspended; `metricsd cloud tenant resume {name}` lets it in again")


@tenant.command("resume")
@click.argument("name")
@database_option
@json_option
def tenant_resume(name: str, database: str | None, as_json: bool) -> None:
    """Let a suspended tenant in again."""
    from metricsd.cloud.tenants import resume_tenant

    found = with_backend(database, lambda backend: resume_tenant(backend.directory, name, SystemClock(), actor=actor()))
    print_done({"name": name, "id": found.id, "suspended_at": None}, as_json, f"tenant {name} is let in")


@tenant.command("drop")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do it: without this, nothing is removed.")
@database_option
@json_option
def tenant_drop(name: str, yes: bool, database: str | None, as_json: bool) -> None:
    """Remove a tenant and all its data for good."""
    from metricsd.cloud.tenants import drop_tenant

    if not yes:
        raise UsageError(
            f"this removes tenant {name!r} with all events, records, users and tokens for good; `metricsd cloud tenant"
            f" export {name}` writes them out first; say --yes to remove them"
        )
    gone = with_backend(database, lambda backend: drop_tenant(backend, name, SystemClock(), actor=actor()))
    print_done({"name": name, "id": gone.id, "dropped": True}, as_json, f"tenant {name} and all its data are removed")


@tenant.command("export")
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write a new private file.")
@database_option
def tenant_export(name: str, output: Path | None, database: str | None) -> None:
    """Write all of a tenant's events and records as JSON lines."""
    if output is None:
        asyncio.run(_export(name, database, sys.stdout.buffer))
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{output} cannot be made ({error.strerror}): name a new file") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            lines = asyncio.run(_export(name, database, stream))
            os.fsync(descriptor)
    except BaseException:
        # Half an export is of no use, and would stand in the way of the next try.
        output.unlink(missing_ok=True)
        raise
    click.echo(f"{lines} lines of tenant {name} are in {output}", err=True)


async def _export(name: str, database: str | None, stream: IO[bytes]) -> int:
    """Write the lines; return how many."""
    from metricsd.cloud.export import export_lines

    backend = open_backend(database)
    count = 0
    try:
        async for lines in export_lines(backend, name, SystemClock(), actor=actor()):
            stream.write(lines)
            count += lines.count(b"\n")
        stream.flush()
    finally:
        await backend.close()
    return count
