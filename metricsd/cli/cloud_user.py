"""`metricsd cloud user`: the people of a tenant. Users are also made by the first token or code for them."""

from __future__ import annotations

import click

from metricsd.cli.cloud_options import (
    actor,
    any_tenant_option,
    database_option,
    json_option,
    print_done,
    print_rows,
    tenant_option,
    when,
    with_backend,
)
from metricsd.clock import SystemClock


@click.group()
def user() -> None:
    """The people of a tenant."""


@user.command("add")
@click.argument("name")
@tenant_option
@database_option
@json_option
def user_add(name: str, tenant_name: str, database: str | None, as_json: bool) -> None:
    """Make a user, who has no device yet."""
    from metricsd.cloud.tenants import add_user

    with_backend(database, lambda backend: add_user(backend.directory, tenant_name, name, SystemClock(), actor=actor()))
    sentence = f"user {name} added; next: metricsd cloud enrol --tenant {tenant_name} --user {name}"
    print_done({"name": name, "tenant": tenant_name}, as_json, sentence)


@user.command("list")
@any_tenant_option
@database_option
@json_option
def user_list(tenant_name: str | None, database: str | None, as_json: bool) -> None:
    """List users with their devices and live tokens."""
    rows = [
        {
            "name": found.name, "tenant": found.tenant, "created_at": when(found.created_at),
            "devices": found.devices, "tokens": found.tokens,
        }
        for found in with_backend(database, lambda backend: backend.directory.list_users(tenant_name))
    ]  # fmt: skip
    print_rows(rows, as_json, "no users; make one with `metricsd cloud user add NAME --tenant TENANT`")


@user.command("revoke")
@click.argument("name")
@tenant_option
@database_option
@json_option
def user_revoke(name: str, tenant_name: str, database: str | None, as_json: bool) -> None:
    """End all tokens and codes of a user, and so all their devices; the data stays."""
    from metricsd.cloud.tenants import revoke_user

    ended = with_backend(
        database, lambda backend: revoke_user(backend.directory, tenant_name, name, SystemClock(), actor=actor())
    )
    row = {"name": name, "tenant": tenant_name, "tokens_ended": ended}
    print_done(row, as_json, f"user {name} is shut out ({ended} tokens ended); the data stays")
