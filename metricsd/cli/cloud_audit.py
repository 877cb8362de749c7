"""`metricsd cloud audit`: who did what to tenants, tokens and devices, and whether that log is as it was written."""

from __future__ import annotations

import json

import click

from metricsd.cli.cloud_options import database_option, json_option, print_rows, when, with_backend
from metricsd.errors import EXIT_FAILED, UsageError


@click.group()
def audit() -> None:
    """Who did what, and whether that log is as it was written."""


@audit.command("list")
@click.option("--after", default=0, metavar="ROW", type=click.IntRange(0), help="Only rows behind this number.")
@click.option(
    "--limit", default=1000, show_default=True, type=click.IntRange(1, 100_000), help="At most this many rows."
)
@database_option
@json_option
def audit_list(after: int, limit: int, database: str | None, as_json: bool) -> None:
    """List administrative acts and enrolments, oldest first."""
    rows = [
        {
            "seq": row.seq, "at": when(row.act.at), "actor": row.act.actor, "action": row.act.action,
            "tenant": row.act.tenant, "subject": row.act.subject,
            "detail": row.act.detail if as_json else " ".join(f"{key}={value}" for key, value in row.act.detail.items()),
            "hash": row.hash.hex() if as_json else row.hash.hex()[:12],
        }
        for row in with_backend(database, lambda backend: backend.directory.audit_page(after, limit))
    ]  # fmt: skip
    print_rows(rows, as_json, "nothing was done yet")


@audit.command("verify")
@click.option("--expect", metavar="ROW:HASH", help="A row and its hash as written down earlier, elsewhere.")
@database_option
@json_option
@click.pass_context
def audit_verify(ctx: click.Context, expect: str | None, database: str | None, as_json: bool) -> None:
    """Check that no row of the log was changed, removed or reordered; exit 1 when one was."""
    from metricsd.cloud.audit import verify
    from metricsd.cloud.registry import AuditHead

    expected = None
    if expect is not None:
        row, _, digest = expect.partition(":")
        try:
            expected = AuditHead(int(row), bytes.fromhex(digest))
        except ValueError as error:
            raise UsageError("--expect is ROW:HASH, as `audit verify` prints it") from error
    found = with_backend(database, lambda backend: verify(backend.directory, expected))
    head = f"{found.last.seq}:{found.last.hash.hex()}"
    if as_json:
        click.echo(json.dumps({"ok": found.fault is None, "rows": found.last.seq, "head": head, "fault": found.fault}))
    elif found.fault is None:
        click.echo(f"{found.last.seq} rows are as they were written; head {head}")
    else:
        click.echo(f"the audit log was tampered with: {found.fault}", err=True)
    if found.fault is not None:
        ctx.exit(EXIT_FAILED)
