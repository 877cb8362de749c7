"""`metricsd cloud policy`: the conflict policy that all devices of a tenant go by.

Works while a server runs on the same database; devices fetch the new text with their next sync.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from metricsd.cli.cloud_options import actor, database_option, json_option, tenant_option, when, with_backend
from metricsd.clock import SystemClock
from metricsd.errors import UsageError


@click.group()
def policy() -> None:
    """The conflict policy that all devices of a tenant go by."""


@policy.command("set")
@tenant_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@database_option
@json_option
def policy_set(tenant_name: str, file: Path, database: str | None, as_json: bool) -> None:
    """Check a policy FILE and give it to the tenant's devices, which fetch it with their next sync."""
    from metricsd.cloud.policies import set_policy
    from metricsd.policy import FILE_BYTES_MAX

    try:
        with file.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    made = with_backend(
        database,
        lambda backend: set_policy(backend, tenant_name, raw, str(file), SystemClock(), actor=actor()),
    )
    if as_json:
        click.echo(json.dumps({"tenant": tenant_name, "version": made.version, "sha256": made.sha256}))
    else:
        click.echo(f"policy {made.version} of tenant {tenant_name} is in force ({made.sha256[:12]})")


@policy.command("show")
@tenant_option
@database_option
@json_option
def policy_show(tenant_name: str, database: str | None, as_json: bool) -> None:
    """Print the tenant's policy."""
    from metricsd.cloud.policies import show_policy

    found = with_backend(database, lambda backend: show_policy(backend, tenant_name))
    if as_json:
        row = None
        if found is not None:
            row = {
                "tenant": tenant_name, "version": found.version, "sha256": found.sha256,
                "set_at": when(found.set_at), "text": found.text,
            }  # fmt: skip
        click.echo(json.dumps(row))
    elif found is None:
        click.echo(f"tenant {tenant_name} has no policy: its devices go by their own", err=True)
    else:
        click.echo(found.text, nl=False)
