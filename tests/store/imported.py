"""What tests of rollbacks share: a store that imports numbered facts, what counts in it, and a way to another device."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

import msgspec

from metricsd.config import Sync
from metricsd.model import Event
from metricsd.protocol import Change, RecordState
from metricsd.store import digests, events, feed, imports, records
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.store.imports import Batch, Entry, Progress, Stored
from metricsd.store.ingest import Beside
from metricsd.store.legacy_extra import Extra
from metricsd.store.suggestions import Suggestion
from metricsd.sync.outgoing import Outgoing
from tests.analytics.support import item
from tests.fakes import START_US

SESSIONS = 3
TOOLS = ("Bash", "Read")
HOUR_US = 3_600_000_000
OUTGOING = Outgoing(bytes(32), Sync())


def fact(number: int, batch: str | None = None) -> Identified:
    """Return fact `number`: the first ones are starts of sessions, the others calls, an hour apart."""
    is_start = number < SESSIONS
    return item(
        number, at=START_US + number * HOUR_US, session=f"s{number % SESSIONS}", batch=batch, duration_ms=number,
        kind="session_started" if is_start else "tool_used", tool=None if is_start else TOOLS[number % 2],
    )  # fmt: skip


def entry(number: int, batch: str, rules: tuple[str, ...] = ()) -> Entry:
    """Return the entry of a fact; a session's start tells its score, its person and what only older clients know."""
    if number >= SESSIONS:
        return Entry([fact(number, batch)], [], rules)
    beside: list[Beside] = [
        Suggestion("session", f"claude-code/s{number}", {"score": 50 + number, "user_id": f"user{number}"}),
        Extra("session", f"s{number}", {"user": f"name{number}"}),
    ]
    return Entry([fact(number, batch)], beside, rules)


def load(
    store: Store, run: str, part: int, numbers: Iterable[int], rules: dict[int, tuple[str, ...]] | None = None
) -> Stored:
    """Import facts as a part of a run."""
    batch = f"{run}.{part}"
    entries = [entry(number, batch, (rules or {}).get(number, ())) for number in numbers]
    return imports.take(
        store, Batch(run, part, batch, "l", "t"), entries, lambda _: (Progress(part, b"", b"", 0), [], b"{}")
    )


def counting(store: Store) -> set[bytes]:
    """Return the ids of the events that count."""
    sql = "SELECT id FROM event WHERE coalesce(batch, 0) NOT IN (SELECT batch FROM retracted_batch)"
    return {event_id for (event_id,) in store.db.execute(sql)}


def said(store: Store) -> dict[str, Any]:
    """Return what records and what is kept for older clients say, but for the switches of imports."""
    found: dict[str, Any] = {}
    sql = "SELECT type, id, fields, deleted FROM record WHERE type != 'import_batch'"
    for kind, record_id, fields, deleted in store.db.execute(sql):
        values = {name: value for name, value in json.loads(fields).items() if value is not None}
        if values or deleted:
            found[f"{kind}/{record_id}"] = (values, deleted)
    for kind, key, body in store.db.execute("SELECT kind, key, body FROM legacy_extra"):
        found[f"extra/{kind}/{key}"] = json.loads(body)
    return found


def state_digest(store: Store) -> str:
    """Return the digest of everything that counts, whatever order it came in."""
    rows = [
        Identified(one, bare(event)) for _, one, event in events.read_own(store, 0, 100_000) if one in counting(store)
    ]
    total = digests.of_events(rows)
    for name, values in said(store).items():
        total = total.plus(digests.Digest(1, int.from_bytes(digests.hash_of(name, values), "big")))
    return total.text()


def bare(event: Event) -> Event:
    return msgspec.structs.replace(event, batch=None)


def carry(source: Store, target: Store, seed: int) -> None:
    """Bring everything of one store to another device as the cloud's feed would, in any order, some of it twice."""
    changes: list[Change] = []
    for pos, event_id, event in events.read_own(source, 0, 100_000):
        changes.append(Change(device="first", event=OUTGOING.event(event_id, pos, event)))
    for kind, record_id in source.db.execute("SELECT type, id FROM record").fetchall():
        record = records.get(source, kind, record_id)
        assert record is not None
        version = record.version
        stamps = {name: stamp for name, stamp in version.stamps.items() if name in version.fields}
        changes.append(
            Change(device="first", record=RecordState(
                type=kind, id=record_id, rev=f"r{seed}.{len(changes)}", device="first", fields=dict(version.fields),
                stamps=stamps, deleted=version.deleted, stamp=version.stamp,
            ))
        )  # fmt: skip
    shuffled = random.Random(seed)
    shuffled.shuffle(changes)
    changes += changes[: len(changes) // 3]
    for start in range(0, len(changes), 7):
        raw = [msgspec.Raw(msgspec.json.encode(change)) for change in changes[start : start + 7]]
        applied = feed.apply(target, raw, f"c{start}", origin="test", only_records=False)
        assert applied.rejected == 0
