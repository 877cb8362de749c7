"""`quarantine`: what could not be accepted, why, and what to do with it.

Retrying hands the kept bytes back to the spool, under the name and in the form that gave them their id, so that an
event which was stored meanwhile is recognised and not counted twice. Purging drops the bytes; the summary stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from metricsd.cli.spans import parse_span
from metricsd.config import find_paths
from metricsd.errors import MetricsdError, UsageError
from metricsd.logs import log_to_terminal
from metricsd.reasons import meaning_of
from metricsd.spool import ensure_spool
from metricsd.store import quarantine as kept
from metricsd.store.connection import Store

CAPTURE_PREFIX = "new/"
RETRIED_FILE = "retried.jsonl"
"""The shared file that lines from shared files are handed back through: there they get the same ids as at first."""
WIRE_PREFIXES = ("event:", "http:", "https:")
"""How entries are named that the cloud refused (the event itself is in the store) or sent."""
LIST_MAX = 1000


@click.group()
def quarantine() -> None:
    """See, retry or purge what could not be accepted."""


@quarantine.command("list")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, 100_000),
    default=LIST_MAX,
    show_default=True,
    help="Newest entries at most.",
)
@click.option("--by-reason", is_flag=True, help="Count the entries of each reason instead.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; fields are only added.")
def list_entries(limit: int, by_reason: bool, as_json: bool) -> None:
    """List what is open, newest first; an entry of a flood holds many lines."""
    with _store() as store:
        entries = kept.list_open(store, limit) if store is not None and not by_reason else []
        counts = kept.count_by_reason(store) if store is not None and by_reason else []
    if by_reason:
        _print_counts(counts, as_json)
        return
    if as_json:
        click.echo(json.dumps([_as_json(entry) for entry in entries], indent=1))
        return
    for entry in entries:
        click.echo(
            f"{entry.id:>6}  {_when(entry)}  {entry.bytes:>9} B  {entry.reason:16} {entry.file}:{entry.offset} {entry.detail}".rstrip()
        )
    click.echo(f"{len(entries)} open" + ("; `metricsd quarantine show ID` prints one" if entries else ""), err=True)


@quarantine.command()
@click.argument("entry_id", metavar="ID", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; `data` is the kept bytes as text.")
def show(entry_id: int, as_json: bool) -> None:
    """Show one entry and the bytes that are kept of it; secret fields were scrubbed when it was kept."""
    with _store() as store:
        entry = _get(store, entry_id)
        data = kept.bytes_of(store, entry) if store is not None else None
    text = None if data is None else data.decode("utf-8", "backslashreplace")
    if as_json:
        click.echo(json.dumps({**_as_json(entry), "data": text}, indent=1))
        return
    for key, value in _as_json(entry).items():
        click.echo(f"{key:8} {value}")
    click.echo(f"{'meaning':8} {meaning_of(entry.reason)}")
    click.echo("the bytes are not kept" if text is None else text.rstrip("\n"))


@quarantine.command()
@click.argument("entry_id", metavar="[ID]", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="Retry every open entry whose bytes are kept.")
@click.option("--reason", metavar="CODE", help="Retry every open entry with this reason, for example newer_version.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of {id, retried, why}.")
def retry(entry_id: int | None, everything: bool, reason: str | None, as_json: bool) -> None:
    """Hand the kept bytes back to the spool; what is still wrong comes back here."""
    _check_choice(entry_id, everything or reason is not None)
    with _store() as store:
        entries = [entry for entry in _chosen(store, entry_id) if reason in (None, entry.reason)]
        results = [_retry(store, entry) for entry in entries] if store is not None else []
    _report(results, "retried", as_json)
    if entry_id is not None and any(not result["retried"] for result in results):
        raise MetricsdError(f"entry {entry_id} cannot be retried: {results[0]['why']}")


@quarantine.command()
@click.argument("entry_id", metavar="[ID]", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="Purge every open entry.")
@click.option("--older-than", metavar="AGE", help="Purge what is older, for example 12h or 30d.")
@click.option("--reason", metavar="CODE", help="Purge every open entry with this reason, for example newer_version.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of {id, purged}.")
def purge(entry_id: int | None, everything: bool, older_than: str | None, reason: str | None, as_json: bool) -> None:
    """Drop kept bytes for good; the summary (file, offset, reason, hash) stays."""
    age = None if older_than is None else parse_span(older_than, "--older-than")
    _check_choice(entry_id, everything or age is not None or reason is not None)
    with _store() as store:
        entries = [entry for entry in _chosen(store, entry_id) if reason in (None, entry.reason)]
        if age is not None:
            before_us = int((datetime.now(UTC) - age).timestamp() * 1_000_000)
            entries = [entry for entry in entries if entry.at < before_us]
        if store is not None:
            kept.settle(store, [entry.id for entry in entries], how="purged")
    _report([{"id": entry.id, "purged": True} for entry in entries], "purged", as_json)


def _print_counts(counts: list[kept.Count], as_json: bool) -> None:
    if as_json:
        rows = [{**count._asdict(), "meaning": meaning_of(count.reason)} for count in counts]
        click.echo(json.dumps(rows, indent=1))
        return
    for count in counts:
        click.echo(f"{count.entries:>9,}  {count.bytes:>13,} B  {count.reason:20} {meaning_of(count.reason)}")


@contextmanager
def _store() -> Iterator[Store | None]:
    """Open the store of this home, or give None where there is none yet."""
    log_to_terminal()
    paths = find_paths()
    if not paths.store.exists():
        yield None
        return
    store = Store.open(paths.store, backups=paths.backups)
    try:
        yield store
    finally:
        store.close()


def _get(store: Store | None, entry_id: int) -> kept.Entry:
    found = kept.get(store, entry_id) if store is not None else None
    if found is None:
        raise MetricsdError(f"no entry {entry_id} in quarantine: `metricsd quarantine list` shows what is there")
    return found


def _check_choice(entry_id: int | None, several: bool) -> None:
    if (entry_id is None) == (not several):
        raise UsageError("name one entry by its ID, or choose with an option; see `metricsd quarantine --help`")


def _chosen(store: Store | None, entry_id: int | None) -> list[kept.Entry]:
    """Return the named entry, or every open one."""
    if entry_id is not None:
        return [_get(store, entry_id)]
    return kept.list_open(store, kept.count_open(store)) if store is not None else []


def _retry(store: Store, entry: kept.Entry) -> dict[str, Any]:
    if entry.file.startswith(WIRE_PREFIXES):
        return {"id": entry.id, "retried": False, "why": "it was refused on the wire, not in the spool; see its reason"}
    data = kept.bytes_of(store, entry)
    if data is None:
        return {"id": entry.id, "retried": False, "why": "its bytes are not kept"}
    if len(data) < entry.bytes and entry.bytes > kept.BYTES_KEPT_MAX:
        return {"id": entry.id, "retried": False, "why": f"only its first {len(data)} bytes are kept"}
    folder = find_paths().spool
    ensure_spool(folder)
    # The row changes first: what is refused again opens it again, and the bytes stay until their time is over.
    kept.mark_retried(store, entry.id)
    if entry.file.startswith(CAPTURE_PREFIX):
        _write_capture(folder / "new" / Path(entry.file).name, _line(data))
    else:
        _append_line(folder / RETRIED_FILE, _line(data))
    return {"id": entry.id, "retried": True, "why": None}


def _line(data: bytes) -> bytes:
    return data if data.endswith(b"\n") else data + b"\n"


def _write_capture(path: Path, line: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        # Handed back before and not yet taken in.
        return
    except OSError as error:
        raise MetricsdError(
            f"{path}: cannot be written ({error.strerror}): check the disk; the bytes are still kept"
        ) from error
    with os.fdopen(handle, "wb") as stream:
        stream.write(line)


def _append_line(path: Path, line: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "ab") as stream:
            stream.write(line)
    except OSError as error:
        raise MetricsdError(
            f"{path}: cannot be written ({error.strerror}): check the disk; the bytes are still kept"
        ) from error


def _report(results: list[dict[str, Any]], verb: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(results, indent=1))
        return
    done = sum(1 for result in results if result[verb])
    click.echo(f"{done} {verb}")
    for result in results:
        if not result[verb]:
            click.echo(f"entry {result['id']}: {result['why']}", err=True)


def _as_json(entry: kept.Entry) -> dict[str, Any]:
    return {**entry._asdict(), "at": _when(entry)}


def _when(entry: kept.Entry) -> str:
    return datetime.fromtimestamp(entry.at / 1_000_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
