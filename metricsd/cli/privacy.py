"""`privacy show`: exactly what would be sent for the newest events, made by the code that sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from metricsd import identity
from metricsd.config import find_paths, load_config

if TYPE_CHECKING:
    from metricsd.protocol import WireEvent
    from metricsd.sync.outgoing import Outgoing

LIMIT_DEFAULT = 5
LIMIT_MAX = 1000


@click.group()
def privacy() -> None:
    """Show exactly what would be sent."""


@privacy.command()
@click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=LIMIT_DEFAULT,
    show_default=True,
    help="Newest events at most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of the bodies; fields are only added.")
def show(limit: int, as_json: bool) -> None:
    """Print the newest events as they would be sent, and what `sync.level` does to them."""
    import msgspec

    from metricsd.sync.outgoing import Outgoing

    paths = find_paths()
    settings = load_config(paths).sync
    credentials = identity.find_credentials(paths)
    key = credentials.tenant_key if credentials else identity.load_identity(paths).installation_key
    shown = _newest(Outgoing(key, settings), limit)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=1))
        return
    for event in shown:
        click.echo(msgspec.json.encode(event))
    click.echo(
        f"sync.level is {settings.level}; shared projects: {', '.join(settings.share_projects) or 'none'}", err=True
    )
    if credentials is None:
        click.echo("not logged in: nothing is sent, and the hashes above will differ with the tenant's key", err=True)
    if not shown:
        click.echo("nothing is recorded yet", err=True)


def _newest(outgoing: Outgoing, limit: int) -> list[WireEvent]:
    """Return the wire forms of the newest own events, oldest first."""
    from metricsd.store import events, outbox
    from metricsd.store.connection import Store

    paths = find_paths()
    if not paths.store.exists():
        return []
    store = Store.open(paths.store)
    try:
        stream = outbox.find(store)
        base = stream.base if stream else 0
        rows = reversed(events.read_newest(store, limit))
        return [outgoing.event(event_id, pos - base, event) for pos, event_id, event in rows]
    finally:
        store.close()
