"""`metricsd cloud device`: the installations that are logged in: who can get in, and what is kept of them."""

from __future__ import annotations

import click

from metricsd.cli.cloud_options import (
    actor,
    any_tenant_option,
    database_option,
    json_option,
    print_done,
    print_rows,
    when,
    when_or_none,
    with_backend,
)
from metricsd.clock import SystemClock
from metricsd.errors import UsageError


@click.group()
def device() -> None:
    """The installations that are logged in."""


@device.command("list")
@any_tenant_option
@database_option
@json_option
def device_list(tenant_name: str | None, database: str | None, as_json: bool) -> None:
    """List devices."""
    rows = [
        {
            "id": found.id, "name": found.name, "tenant": found.tenant, "user": found.user, "parent": found.parent,
            "created_at": when(found.created_at), "revoked": not found.live, "erased_at": when_or_none(found.erased_at),
        }
        for found in with_backend(database, lambda backend: backend.directory.list_devices(tenant_name))
    ]  # fmt: skip
    print_rows(rows, as_json, "no devices; `metricsd cloud enrol` prints a code that makes one")


@device.command("revoke")
@click.argument("device_id", metavar="ID")
@database_option
@json_option
def device_revoke(device_id: str, database: str | None, as_json: bool) -> None:
    """End all tokens of a device now, for every process of the cloud; its data stays."""
    from metricsd.cloud.tenants import revoke_device

    with_backend(database, lambda backend: revoke_device(backend.directory, device_id, SystemClock(), actor=actor()))
    print_done({"id": device_id, "revoked": True}, as_json, f"device {device_id} is shut out; its data stays")


@device.command("erase")
@click.argument("device_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do it: without this, nothing is removed.")
@database_option
@json_option
def device_erase(device_id: str, yes: bool, database: str | None, as_json: bool) -> None:
    """Shut a device out and remove what it wrote, as its user can by `metricsd logout --take-back`."""
    from metricsd.cloud.enrolment import erase_by_administrator

    if not yes:
        raise UsageError(f"this removes all events of device {device_id!r} from the cloud for good: say --yes to do it")
    gone = with_backend(
        database, lambda backend: erase_by_administrator(backend, device_id, SystemClock(), actor=actor())
    )
    row = {"id": device_id, "events": gone.events, "records": gone.records}
    sentence = f"device {device_id} is shut out; {gone.events} events and {gone.records} records are removed"
    print_done(row, as_json, sentence)
