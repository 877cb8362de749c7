"""Whether the store is whole, of a schema that this metricsd knows, and copied every night. Reads only, for a bounded time."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import time
from collections.abc import Iterator

from metricsd.doctor.finding import Facts, Finding, fail, not_used, ok, size_text, warn
from metricsd.schema import STEPS_PER_MAJOR, load_steps, version_of
from metricsd.store.backup import newest_backup
from metricsd.store.newer import find_copy

CHECK_TIMEOUT_S = 20.0
BACKUP_DAYS_MAX = 7
"""A laptop that sleeps at night misses some; a week without a copy is worth a look."""
_STEPS_PER_LOOK = 10_000
_STEPS = "metricsd.store.schema"


def check_store(facts: Facts) -> list[Finding]:
    """Return how the store, its schema and its backups stand."""
    path = facts.paths.store
    if not path.exists():
        return [not_used("store", "there is none yet; the daemon makes it", "metricsd up")]
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as db:
            version = version_of(db)
            newest = load_steps(_STEPS)[-1].number
            if version // STEPS_PER_MAJOR > newest // STEPS_PER_MAJOR:
                return [_too_new(facts, version, newest)]
            return [
                *_trouble(facts),
                _integrity(facts, db),
                _schema(version, newest),
                *_backups(facts),
                *_attention(facts),
            ]
    except sqlite3.Error as error:
        return [_damaged(facts, str(error))]


def _trouble(facts: Facts) -> Iterator[Finding]:
    """Say what the daemon cannot do with the store now, in its own words, which end with what helps."""
    store = facts.status["store"]
    if not store["healthy"]:
        yield fail("store", str(store["reason"]), "what the line says; the daemon goes on by itself then")


def _integrity(facts: Facts, db: sqlite3.Connection) -> Finding:
    """Check every page, for as long as a person waits."""
    ends = time.monotonic() + CHECK_TIMEOUT_S
    began = time.monotonic()
    db.set_progress_handler(lambda: int(time.monotonic() > ends), _STEPS_PER_LOOK)
    size = size_text(facts.status["store"]["bytes"])
    try:
        said = [str(row[0]) for row in db.execute("PRAGMA quick_check(3)")]
    except sqlite3.OperationalError as error:
        if time.monotonic() > ends:
            return ok(
                "store", f"{size}, too large to look at every page in {CHECK_TIMEOUT_S:g} s; what was seen is whole"
            )
        return _damaged(facts, str(error))
    finally:
        db.set_progress_handler(None, 0)
    if said != ["ok"]:
        return _damaged(facts, "; ".join(said))
    events = facts.status["store"]["events"]
    return ok(
        "store",
        f"whole: {events:,} event{'' if events == 1 else 's'}, {size}, checked in {time.monotonic() - began:.1f} s",
    )


def _damaged(facts: Facts, says: str) -> Finding:
    return fail(
        "store", f"{facts.paths.store} cannot be read as it should ({says[:200]})", "metricsd down, metricsd up"
    )


def _schema(version: int, newest: int) -> Finding:
    if version < newest:
        return ok("schema", f"step {version}; the daemon's next start brings it to {newest}, after a copy")
    return ok("schema", f"step {version}")


def _too_new(facts: Facts, version: int, newest: int) -> Finding:
    says = f"written by a newer metricsd (schema {version}, this one knows up to {newest})"
    copy = find_copy(facts.paths.backups, newest)
    other = f"; or go back to its copy {copy}, which lacks what came since" if copy is not None else ""
    return fail("schema", says, f"upgrade metricsd{other}")


def _backups(facts: Facts) -> Iterator[Finding]:
    if facts.config.store.backup_keep == 0:
        yield not_used("backup", "switched off (store.backup_keep = 0)")
        return
    newest = newest_backup(facts.paths.backups)
    made = facts.paths.store if newest is None else newest
    try:
        age_days = (time.time() - made.stat().st_mtime) / 86400 if newest is not None else _age_days(facts)
    except OSError:
        return
    when = f"at {facts.config.store.backup_hour} o'clock"
    if age_days > BACKUP_DAYS_MAX:
        says = f"the newest copy is {age_days:.0f} days old" if newest else f"no copy in {age_days:.0f} days"
        yield warn("backup", f"{says}: the machine sleeps {when}?", "set store.backup_hour to an hour when it is awake")
    elif newest is None:
        yield ok("backup", f"none yet; the first is made {when}")
    else:
        yield ok("backup", f"{newest.name}, {age_days:.1f} days old")


def _age_days(facts: Facts) -> float:
    """Return for how long this home has recorded: since the identity was made, which is once."""
    made = dt.datetime.fromtimestamp(facts.paths.identity.stat().st_mtime, dt.UTC)
    return (dt.datetime.now(dt.UTC) - made).total_seconds() / 86400


def _attention(facts: Facts) -> Iterator[Finding]:
    """Look at what waits for a person's word."""
    status = facts.status
    refused = status["spool"]["quarantined"] + status["sync"]["quarantined"]
    if refused:
        yield warn("quarantine", f"{refused} items could not be accepted", "metricsd quarantine list --by-reason")
    if status["sync"]["conflicts_open"]:
        says = f"{status['sync']['conflicts_open']} records in conflict wait for a decision"
        yield warn("conflicts", says, "metricsd conflicts list")
