"""`conflicts`: records that two devices changed, both versions side by side, what was decided and by which rule.

Looking changes nothing. Restoring writes a version back as an edit of now, which syncs like any other edit and is
itself in nobody's way: what it replaces was agreed on before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from metricsd.cli.status_text import counted
from metricsd.config import find_paths
from metricsd.errors import LineRejected, UsageError

if TYPE_CHECKING:
    from metricsd.conflict import Version
    from metricsd.store.conflict_log import Entry
    from metricsd.store.connection import Store

LIST_MAX = 1000
SIDES = ("local", "remote", "base")
_US_PER_S = 1_000_000


@click.group()
def conflicts() -> None:
    """See records that two devices changed, and bring back what lost."""


@conflicts.command("list")
@click.option("--all", "with_closed", is_flag=True, help="Decided ones too, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; fields are only added.")
def list_conflicts(with_closed: bool, as_json: bool) -> None:
    """List the open conflicts, oldest first; with --all what was decided."""
    from metricsd.store import conflict_log

    with _store() as store:
        found: list[Entry] = []
        if store is not None:
            found = (conflict_log.list_all if with_closed else conflict_log.list_open)(store, LIST_MAX)
    if as_json:
        click.echo(json.dumps([_as_json(entry) for entry in found], indent=1))
        return
    for entry in found:
        fields = ", ".join(name for name, *_ in _differences(entry))
        how = f"{entry.state} by {entry.strategy}" if entry.strategy else entry.state
        click.echo(f"{entry.id:>6}  {_when(entry)}  {entry.type}  {_shown(entry.record_id)}  ({fields})  {how}")
    what = counted(len(found), "conflict" if with_closed else "open conflict")
    hint = "; `metricsd conflicts show ID` prints one" if found else "" if with_closed else "; --all lists decided ones"
    click.echo(f"{what}{hint}", err=True)


@conflicts.command()
@click.argument("conflict_id", metavar="ID", type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def show(conflict_id: int, as_json: bool) -> None:
    """Print one conflict: base, local, remote and result, and what decided."""
    with _store() as store:
        entry = _get(store, conflict_id)
    if as_json:
        click.echo(json.dumps(_as_json(entry), indent=1))
        return
    click.echo(f"{entry.type} {_shown(entry.record_id)}, {entry.state} {_when(entry)}")
    if entry.strategy:
        policy = f", policy {entry.policy[:12]}" if entry.policy else ""
        click.echo(f"decided by {entry.strategy} ({_shown(entry.rule or 'nothing was left to decide')}{policy})")
    for name, base, local, remote in _differences(entry):
        click.echo(f"  {name}")
        values = [("base", base), ("here", local), ("cloud", remote)]
        if entry.result is not None:
            result = entry.result.deleted if name == "deleted" else entry.result.fields.get(name)
            values.append(("result", result))
        for side, value in values:
            click.echo(f"    {side:6} {json.dumps(value)}")
    click.echo(f"`metricsd conflicts restore {entry.id} --side local|remote|base` writes a side back", err=True)


@conflicts.command()
@click.argument("conflict_id", metavar="ID", type=click.IntRange(1))
@click.option("--side", type=click.Choice(SIDES), help="Which version to bring back; the one that lost if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; fields are only added.")
def restore(conflict_id: int, side: str | None, as_json: bool) -> None:
    """Write a version of a conflict back, deletions included; it then syncs as an edit of now."""
    from metricsd.cli.session import notify
    from metricsd.store import records

    with _store() as store:
        entry = _get(store, conflict_id)
        if store is None:
            raise AssertionError("a conflict was found, so there is a store")
        chosen = side or _loser(entry)
        wanted = {"local": entry.local, "remote": entry.remote, "base": entry.base}[chosen]
        if wanted is None:
            raise UsageError(f"conflict {conflict_id} has no base: both sides made the record")
        try:
            with store.transaction(full=True):
                version = records.restore(store, entry, wanted)
        except LineRejected as error:
            raise UsageError(f"conflict {conflict_id}: that version cannot be written ({error.detail})") from error
    notify(find_paths())
    if as_json:
        document = {"type": entry.type, "record_id": entry.record_id, "side": chosen, **_version(version)}
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(f"{entry.type} {_shown(entry.record_id)} is as {_named(chosen)} was; the next sync sends it")


@contextmanager
def _store() -> Iterator[Store | None]:
    """Open the home's store, if there is one."""
    from metricsd.store.connection import Store

    paths = find_paths()
    if not paths.store.exists():
        yield None
        return
    store = Store.open(paths.store, backups=paths.backups)
    try:
        yield store
    finally:
        store.close()


def _get(store: Store | None, conflict_id: int) -> Entry:
    from metricsd.store import conflict_log

    found = conflict_log.find(store, conflict_id) if store is not None else None
    if found is None:
        raise UsageError(f"there is no conflict {conflict_id}: `metricsd conflicts list --all` shows them")
    return found


def _loser(entry: Entry) -> str:
    """Return the side that the result says the least of: the remote one if ours won, else ours."""
    from metricsd.conflict import same

    return "remote" if entry.result is not None and same(entry.result, entry.local) else "local"


def _named(side: str) -> str:
    return {"local": "this device's version", "remote": "the cloud's version", "base": "the common base"}[side]


def _differences(entry: Entry) -> list[tuple[str, Any, Any, Any]]:
    """Return (field, base, local, remote) of each field in which the two sides differ; a deletion is one of them."""
    base, local, remote = entry.base, entry.local, entry.remote
    rows: list[tuple[str, Any, Any, Any]] = []
    if local.deleted != remote.deleted:
        rows.append(("deleted", base.deleted if base else None, local.deleted, remote.deleted))
    for name in sorted(local.fields.keys() | remote.fields.keys()):
        ours, theirs = local.fields.get(name), remote.fields.get(name)
        if ours != theirs:
            rows.append((name, base.fields.get(name) if base else None, ours, theirs))
    return rows


def _as_json(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": _when(entry),
        "type": entry.type,
        "record_id": entry.record_id,
        "state": str(entry.state),
        "strategy": entry.strategy,
        "rule": entry.rule,
        "policy": entry.policy,
        "base": _version(entry.base) if entry.base else None,
        "local": _version(entry.local),
        "remote": _version(entry.remote),
        "result": _version(entry.result) if entry.result else None,
    }


def _version(version: Version) -> dict[str, Any]:
    return {"fields": version.fields, "stamps": version.stamps, "deleted": version.deleted}


def _shown(text: str) -> str:
    """Return the text without what could steer the terminal that shows it."""
    return "".join(char if char.isprintable() else " " for char in text)


def _when(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.at / _US_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
