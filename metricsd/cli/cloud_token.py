"""`metricsd cloud token`: secrets that let people and programs in. A token's text is printed once, when it is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from metricsd.cli.cloud_options import (
    actor,
    any_tenant_option,
    database_option,
    json_option,
    parse_expiry,
    parse_span_s,
    print_done,
    print_rows,
    tenant_option,
    when,
    when_or_none,
    with_backend,
)
from metricsd.clock import SystemClock

if TYPE_CHECKING:
    from metricsd.cloud.access import Token
    from metricsd.cloud.registry import AdminBackend

SCOPES = ("enrol", "read", "admin", "legacy")
_JSON_FIELDS = ("id", "scope", "tenant", "user", "created_at", "revoked")
"""Programs rely on these six, and on no other."""
_ONCE = "shown this once; whoever has it can act for this user"


@click.group()
def token() -> None:
    """Secrets that let people and programs in."""


@token.command("create")
@tenant_option
@click.option("--user", required=True, help="The person; made if new.")
@click.option("--scope", type=click.Choice(SCOPES), default="enrol", show_default=True, help="What it allows.")
@click.option("--expires", metavar="WHEN", help="90d, 12h or a date such as 2027-01-31 (UTC); without it, never.")
@database_option
@json_option
def token_create(
    tenant_name: str, user: str, scope: str, expires: str | None, database: str | None, as_json: bool
) -> None:
    """Make a token and print it, this once."""
    from metricsd.cloud.access import Scope
    from metricsd.cloud.auth import digest_of
    from metricsd.cloud.tenants import create_token

    clock = SystemClock()
    expires_at = None if expires is None else parse_expiry(expires, clock.now_us())

    async def make(backend: AdminBackend) -> tuple[str, str]:
        text = await create_token(
            backend.directory, tenant_name, user, Scope(scope), clock, expires_at=expires_at, actor=actor()
        )
        made = await backend.directory.find_token(digest_of(text))
        return text, "" if made is None else made.id

    text, token_id = with_backend(database, make)
    if as_json:
        row = {"token": text, "tenant": tenant_name, "user": user, "scope": scope, "id": token_id}
        click.echo(json.dumps(row))
        return
    click.echo(text)
    click.echo(f"{_ONCE}; `metricsd cloud token revoke {token_id}` ends it", err=True)


@token.command("list")
@any_tenant_option
@click.option("--long", "is_long", is_flag=True, help="JSON: device and expires_at as well, as the table has them.")
@database_option
@json_option
def token_list(tenant_name: str | None, is_long: bool, database: str | None, as_json: bool) -> None:
    """List tokens, never their secrets."""
    found = with_backend(database, lambda backend: backend.directory.list_tokens(tenant_name))
    rows = [_row(token) for token in found]
    if as_json and not is_long:
        rows = [{name: row[name] for name in _JSON_FIELDS} for row in rows]
    print_rows(rows, as_json, "no tokens")


@token.command("rotate")
@click.argument("token_id", metavar="ID")
@click.option(
    "--overlap", default="24h", show_default=True, metavar="SPAN", help="How long the old one goes on; 0h ends it now."
)
@database_option
@json_option
def token_rotate(token_id: str, overlap: str, database: str | None, as_json: bool) -> None:
    """Print a new token in the place of an old one, which goes on for a while beside it."""
    from metricsd.cloud.tenants import rotate_token

    overlap_s = parse_span_s("--overlap", overlap)
    text, made = with_backend(
        database,
        lambda backend: rotate_token(backend.directory, token_id, overlap_s, SystemClock(), actor=actor()),
    )
    if as_json:
        click.echo(json.dumps({"token": text, "id": made.id, "replaces": token_id, "overlap_s": overlap_s}))
        return
    click.echo(text)
    click.echo(f"{_ONCE}; its id is {made.id}; token {token_id} {_ending(overlap, overlap_s)}", err=True)


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@database_option
@json_option
def token_revoke(token_id: str, database: str | None, as_json: bool) -> None:
    """End a token now, for every process of the cloud. `token list` shows the ids."""
    from metricsd.cloud.tenants import revoke_token

    with_backend(database, lambda backend: revoke_token(backend.directory, token_id, SystemClock(), actor=actor()))
    print_done({"id": token_id, "revoked": True}, as_json, f"token {token_id} revoked")


def _ending(overlap: str, overlap_s: int) -> str:
    return f"ends in {overlap}" if overlap_s else "has ended"


def _row(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "scope": str(token.scope),
        "tenant": token.tenant.name,
        "user": token.user,
        "device": token.device,
        "created_at": when(token.created_at),
        "expires_at": when_or_none(token.expires_at),
        "revoked": token.revoked_at is not None,
    }
