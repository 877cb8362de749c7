"""`metricsd cloud`: serve a cloud, and make its tenants and tokens.

Without --database every command uses the home's embedded database, the one that `run --with-cloud` serves. The
commands work while a server runs on the same files: each is a few short transactions. A token is printed once.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

import click

from metricsd.clock import US_PER_S, SystemClock
from metricsd.config import find_paths, load_config
from metricsd.errors import UsageError

if TYPE_CHECKING:
    from metricsd.cloud.backend import Token
    from metricsd.cloud.sqlite import SqliteBackend

T = TypeVar("T")

DEFAULT_PORT = 8400
FILES_MAX = 512
"""Descriptors of the databases that a server has open at once, and then some."""
SCOPES = ("enrol", "read", "admin")
_ELSEWHERE = {"policy": "metricsd.cli.cloud_policy"}
_UNITS_S = {"h": 3600, "d": 86400}
_SPAN = re.compile(r"([1-9][0-9]{0,5})([hd])")

database_option = click.option(
    "--database", metavar="URL", help="sqlite:/absolute/folder; without it the home's embedded database."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Cloud(click.Group):
    """The group, with the nouns that have a file of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(_ELSEWHERE[cmd_name]), cmd_name)
        return found


@click.group(cls=_Cloud)
def cloud() -> None:
    """Serve a cloud; make its tenants, tokens and policies."""


@cloud.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535), help="0 picks one.")
@database_option
@json_option
def serve(host: str, port: int, database: str | None, as_json: bool) -> None:
    """Serve until SIGTERM or Ctrl-C; open requests are finished first."""
    from metricsd.logs import log_to_terminal

    log_to_terminal()
    asyncio.run(_serve(host, port, database, as_json))


@cloud.group()
def tenant() -> None:
    """Organisations whose data is kept apart."""


@tenant.command("create")
@click.argument("name")
@database_option
@json_option
def tenant_create(name: str, database: str | None, as_json: bool) -> None:
    """Make a tenant."""
    from metricsd.cloud.tenants import create_tenant

    made = with_backend(database, lambda backend: create_tenant(backend.directory, name, SystemClock()))
    if as_json:
        click.echo(json.dumps({"name": made.name, "id": made.id, "created_at": when(made.created_at)}))
    else:
        click.echo(f"tenant {made.name} made; next: metricsd cloud token create --tenant {made.name} --user NAME")


@tenant.command("list")
@database_option
@json_option
def tenant_list(database: str | None, as_json: bool) -> None:
    """List the tenants."""
    rows = [
        {"name": found.name, "id": found.id, "created_at": when(found.created_at)}
        for found in with_backend(database, lambda backend: backend.directory.list_tenants())
    ]
    _print(rows, as_json, "no tenants; make one with `metricsd cloud tenant create NAME`")


@cloud.group()
def token() -> None:
    """Secrets that let people and programs in."""


@token.command("create")
@click.option("--tenant", "tenant_name", required=True, help="The tenant's name.")
@click.option("--user", required=True, help="The person; made if new.")
@click.option("--scope", type=click.Choice(SCOPES), default="enrol", show_default=True, help="What it allows.")
@click.option("--expires", metavar="WHEN", help="90d, 12h or a date such as 2027-01-31 (UTC); without it, never.")
@database_option
@json_option
def token_create(
    tenant_name: str, user: str, scope: str, expires: str | None, database: str | None, as_json: bool
) -> None:
    """Make a token and print it, this once."""
    from metricsd.cloud.backend import Scope
    from metricsd.cloud.tenants import create_token

    clock = SystemClock()
    expires_at = None if expires is None else parse_expiry(expires, clock.now_us())
    text = with_backend(
        database,
        lambda backend: create_token(backend.directory, tenant_name, user, Scope(scope), clock, expires_at=expires_at),
    )
    if as_json:
        click.echo(json.dumps({"token": text, "tenant": tenant_name, "user": user, "scope": scope}))
        return
    click.echo(text)
    click.echo("shown this once; whoever has it can act for this user", err=True)


@token.command("list")
@click.option("--tenant", "tenant_name", help="Only this tenant's.")
@database_option
@json_option
def token_list(tenant_name: str | None, database: str | None, as_json: bool) -> None:
    """List tokens, never their secrets."""
    found = with_backend(database, lambda backend: backend.directory.list_tokens(tenant_name))
    _print([_token_row(token) for token in found], as_json, "no tokens")


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@database_option
@json_option
def token_revoke(token_id: str, database: str | None, as_json: bool) -> None:
    """End a token now, for every process of the cloud. `token list` shows the ids."""
    from metricsd.cloud.tenants import revoke_token

    with_backend(database, lambda backend: revoke_token(backend.directory, token_id, SystemClock(), actor=actor()))
    click.echo(json.dumps({"id": token_id, "revoked": True}) if as_json else f"token {token_id} revoked")


def parse_expiry(text: str, now_us: int) -> int:
    """Return when `90d`, `12h` or an ISO date ends, in microseconds UTC; raise UsageError."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        return now_us + int(span[1]) * _UNITS_S[span[2]] * US_PER_S
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--expires {text!r}: write 90d, 12h or a date such as 2027-01-31") from error
    at = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * US_PER_S
    if at <= now_us:
        raise UsageError(f"--expires {text!r} has passed already")
    return at


def actor() -> str:
    """Return who this is to the audit log: the system's user, who alone could run this here."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"cli:{name}"


def open_backend(database: str | None) -> SqliteBackend:
    """Return the backend that `--database` names, by default the home's embedded one."""
    from metricsd.cloud.sqlite import SqliteBackend, folder_of

    paths = find_paths()
    folder = paths.cloud if database is None else folder_of(database)
    return SqliteBackend(folder, load_config(paths).cloud)


def with_backend(database: str | None, work: Callable[[SqliteBackend], Awaitable[T]]) -> T:
    """Run `work` on the backend that `--database` names."""

    async def run() -> T:
        backend = open_backend(database)
        try:
            return await work(backend)
        finally:
            await backend.close()

    return asyncio.run(run())


async def _serve(host: str, port: int, database: str | None, as_json: bool) -> None:
    from metricsd.cloud.app import create_app
    from metricsd.cloud.serve import CONNECTIONS_MAX, CloudServer

    settings = load_config(find_paths()).cloud
    backend = open_backend(database)
    _allow_descriptors(CONNECTIONS_MAX + settings.streams_max + FILES_MAX)
    try:
        server = CloudServer(create_app(backend, settings), settings, host=host, port=port)
        url = await server.start()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        # One line, when requests are answered: whoever started us waits for it.
        click.echo(json.dumps({"url": url}) if as_json else f"serving on {url} (Ctrl-C stops)")
        stopping = asyncio.create_task(stop.wait(), name="cloud-stop")
        ended = asyncio.create_task(server.wait(), name="cloud-end")
        await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await server.stop()
        await ended
    finally:
        await backend.close()


def _allow_descriptors(wanted: int) -> None:
    """Raise this process's limit of open files as far as it may be: each connection and each open file takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _token_row(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "scope": str(token.scope),
        "tenant": token.tenant.name,
        "user": token.user,
        "device": token.device,
        "created_at": when(token.created_at),
        "expires_at": None if token.expires_at is None else when(token.expires_at),
        "revoked": token.revoked_at is not None,
    }


def when(at_us: int) -> str:
    """Return microseconds UTC as people and scripts read them."""
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print(rows: Sequence[Mapping[str, object]], as_json: bool, empty: str) -> None:
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo(empty)
        return
    names = list(rows[0])
    table = [names, *[["-" if row[name] is None else str(row[name]) for name in names] for row in rows]]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
