"""`conflicts`: records that two devices changed, with both versions side by side. Looking changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from metricsd.config import find_paths
from metricsd.errors import UsageError

if TYPE_CHECKING:
    from metricsd.store.connection import Store
    from metricsd.store.records import Conflict, Version

LIST_MAX = 1000
_US_PER_S = 1_000_000


@click.group()
def conflicts() -> None:
    """See records that two devices changed."""


@conflicts.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; fields are only added.")
def list_open(as_json: bool) -> None:
    """List the open conflicts, oldest first."""
    from metricsd.store import records

    with _store() as store:
        found = records.list_conflicts(store, LIST_MAX) if store is not None else []
    if as_json:
        click.echo(json.dumps([_as_json(conflict) for conflict in found], indent=1))
        return
    for conflict in found:
        fields = ", ".join(name for name, *_ in _differences(conflict))
        click.echo(f"{conflict.id:>6}  {_when(conflict)}  {conflict.type}  {conflict.record_id}  ({fields})")
    click.echo(f"{len(found)} open" + ("; `metricsd conflicts show ID` prints one" if found else ""), err=True)


@conflicts.command()
@click.argument("conflict_id", metavar="ID", type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def show(conflict_id: int, as_json: bool) -> None:
    """Print one conflict: base, local and remote version."""
    from metricsd.store import records

    with _store() as store:
        found = records.get_conflict(store, conflict_id) if store is not None else None
    if found is None:
        raise UsageError(f"there is no conflict {conflict_id}: `metricsd conflicts list` shows the open ones")
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=1))
        return
    click.echo(f"{found.type} {found.record_id}, {found.state} since {_when(found)}; nothing is overwritten meanwhile")
    for name, base, local, remote in _differences(found):
        click.echo(f"  {name}")
        for side, value in (("base", base), ("here", local), ("cloud", remote)):
            click.echo(f"    {side:5} {json.dumps(value)}")


@contextmanager
def _store() -> Iterator[Store | None]:
    """Open the home's store, if there is one."""
    from metricsd.store.connection import Store

    path = find_paths().store
    if not path.exists():
        yield None
        return
    store = Store.open(path)
    try:
        yield store
    finally:
        store.close()


def _differences(conflict: Conflict) -> list[tuple[str, Any, Any, Any]]:
    """Return (field, base, local, remote) of each field in which the two sides differ; a deletion is one of them."""
    base, local, remote = conflict.base, conflict.local, conflict.remote
    rows: list[tuple[str, Any, Any, Any]] = []
    if local.deleted != remote.deleted:
        rows.append(("deleted", base.deleted if base else None, local.deleted, remote.deleted))
    for name in sorted(local.fields.keys() | remote.fields.keys()):
        ours, theirs = local.fields.get(name), remote.fields.get(name)
        if ours != theirs:
            rows.append((name, base.fields.get(name) if base else None, ours, theirs))
    return rows


def _as_json(conflict: Conflict) -> dict[str, Any]:
    return {
        "id": conflict.id,
        "at": _when(conflict),
        "type": conflict.type,
        "record_id": conflict.record_id,
        "state": conflict.state,
        "base": _version(conflict.base) if conflict.base else None,
        "local": _version(conflict.local),
        "remote": _version(conflict.remote),
    }


def _version(version: Version) -> dict[str, Any]:
    return {"fields": version.fields, "stamps": version.stamps, "deleted": version.deleted}


def _when(conflict: Conflict) -> str:
    return datetime.fromtimestamp(conflict.at / _US_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
