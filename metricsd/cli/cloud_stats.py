"""`metricsd cloud stats`: how much each tenant holds, and who is in it."""

from __future__ import annotations

import click

from metricsd.cli.cloud_options import database_option, json_option, print_rows, with_backend

COUNT_TIMEOUT_S = 3600.0
"""PostgreSQL reads a whole table to count its rows: far longer than a request may take, for a big tenant."""


@click.command()
@click.option("--tenant", "tenant_name", help="Only this tenant.")
@database_option
@json_option
def stats(tenant_name: str | None, database: str | None, as_json: bool) -> None:
    """Show how much each tenant holds."""
    from metricsd.cloud.figures import read_figures

    rows = [
        {
            "tenant": row.tenant, "suspended": row.suspended, "users": row.users, "devices": row.devices,
            "tokens": row.tokens, "events": row.stats.events, "records": row.stats.records,
            "tombstones": row.stats.tombstones, "size_bytes": row.stats.size_bytes, "change": row.stats.change,
        }
        for row in with_backend(database, lambda backend: read_figures(backend, tenant_name), timeout_s=COUNT_TIMEOUT_S)
    ]  # fmt: skip
    print_rows(rows, as_json, "no tenants; make one with `metricsd cloud tenant create NAME`")
