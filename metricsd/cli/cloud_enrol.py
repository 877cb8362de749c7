"""`metricsd cloud enrol`: a one-time code that a person types once at `metricsd login`."""

from __future__ import annotations

import json

import click

from metricsd.cli.cloud_options import (
    actor,
    database_option,
    json_option,
    parse_span_s,
    tenant_option,
    when,
    with_backend,
)
from metricsd.clock import SystemClock


@click.command()
@tenant_option
@click.option("--user", required=True, help="The person; made if new.")
@click.option(
    "--expires", default="1h", show_default=True, metavar="SPAN", help="How long it counts: 30m, 24h; 7d at most."
)
@database_option
@json_option
def enrol(tenant_name: str, user: str, expires: str, database: str | None, as_json: bool) -> None:
    """Print a one-time code with which a user logs one device in."""
    from metricsd.cloud.enrolment import create_code

    life_s = parse_span_s("--expires", expires)
    text, code = with_backend(
        database,
        lambda backend: create_code(backend.directory, tenant_name, user, life_s, SystemClock(), actor=actor()),
    )
    if as_json:
        row = {"code": text, "tenant": tenant_name, "user": user, "expires_at": when(code.expires_at)}
        click.echo(json.dumps(row))
        return
    click.echo(text)
    click.echo(f"for one device of {user}, until {when(code.expires_at)}: `metricsd login URL` asks for it", err=True)
