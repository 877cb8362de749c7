"""What all `metricsd cloud` commands share: the database they work on, how times are read, how rows are shown.

Without --database every command uses the home's embedded database, the one that `run --with-cloud` serves. The
commands work while a server runs on the same database: each is a few short transactions.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click

from metricsd.clock import US_PER_S
from metricsd.config import find_paths, load_config
from metricsd.errors import UsageError

if TYPE_CHECKING:
    from metricsd.cloud.postgres import PostgresBackend
    from metricsd.cloud.registry import AdminBackend

T = TypeVar("T")

_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"([0-9]{1,6})([mhd])")

database_option = click.option(
    "--database",
    metavar="URL",
    help="sqlite:/absolute/folder or postgresql://...; without it the home's embedded database.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
tenant_option = click.option("--tenant", "tenant_name", required=True, help="The tenant's name.")
any_tenant_option = click.option("--tenant", "tenant_name", help="Only this tenant's.")


def open_backend(database: str | None, *, timeout_s: float | None = None) -> AdminBackend:
    """Return the backend that `--database` names, by default the home's embedded one; see open_postgres."""
    from metricsd.cloud.pg_names import is_postgres
    from metricsd.cloud.sqlite import SqliteBackend, folder_of

    paths = find_paths()
    if database is not None and is_postgres(database):
        return open_postgres(database, timeout_s=timeout_s)
    folder = paths.cloud if database is None else folder_of(database)
    return SqliteBackend(folder, load_config(paths).cloud)


def open_postgres(url: str, *, timeout_s: float | None = None) -> PostgresBackend:
    """Return the backend over a PostgreSQL database; raise UsageError when the extra is not installed.

    `timeout_s` is the deadline of a statement, where the setting's would be too short.
    """
    try:
        from metricsd.cloud.postgres import PostgresBackend
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise UsageError("PostgreSQL needs asyncpg: pip install 'metricsd[postgres]'") from error
    settings = load_config(find_paths()).cloud
    return PostgresBackend(url, settings if timeout_s is None else settings._replace(database_timeout_s=timeout_s))


def with_backend(
    database: str | None, work: Callable[[AdminBackend], Awaitable[T]], *, timeout_s: float | None = None
) -> T:
    """Run `work` on the backend that `--database` names."""

    async def run() -> T:
        backend = open_backend(database, timeout_s=timeout_s)
        try:
            return await work(backend)
        finally:
            await backend.close()

    return asyncio.run(run())


def actor() -> str:
    """Return who this is to the audit log: the system's user, who alone can reach the database from here."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"cli:{name}"


def parse_span_s(option: str, text: str) -> int:
    """Return the seconds of `30m`, `24h` or `7d`; raise UsageError that names the option."""
    span = _SPAN.fullmatch(text)
    if span is None:
        raise UsageError(f"{option} {text!r}: write a span such as 30m, 24h or 7d")
    return int(span[1]) * _UNITS_S[span[2]]


def parse_expiry(text: str, now_us: int) -> int:
    """Return when `90d`, `12h` or an ISO date ends, in microseconds UTC; raise UsageError."""
    if _SPAN.fullmatch(text) is not None:
        at = now_us + parse_span_s("--expires", text) * US_PER_S
    else:
        try:
            when = datetime.fromisoformat(text)
        except ValueError as error:
            raise UsageError(f"--expires {text!r}: write 90d, 12h or a date such as 2027-01-31") from error
        at = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * US_PER_S
    if at <= now_us:
        raise UsageError(f"--expires {text!r} has passed already")
    return at


def when(at_us: int) -> str:
    """Return microseconds UTC as people and scripts read them."""
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def when_or_none(at_us: int | None) -> str | None:
    """Return a time that may not be there."""
    return None if at_us is None else when(at_us)


def print_rows(rows: Sequence[Mapping[str, object]], as_json: bool, empty: str) -> None:
    """Print a listing: a JSON array, or a table for people, or what to do when it is empty."""
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo(empty)
        return
    names = list(rows[0])
    table = [names, *[[_cell(row[name]) for name in names] for row in rows]]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def print_done(row: Mapping[str, object], as_json: bool, sentence: str) -> None:
    """Print what was done: JSON, or one sentence."""
    click.echo(json.dumps(row) if as_json else sentence)
