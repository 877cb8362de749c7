"""Takes a migration back, by the word of a person: what was asked for becomes a plan of store/rollbacks.py, which does it.

Whoever works on a run holds its lock, so a rollback waits for nobody and nobody loads meanwhile. It writes beside a
running daemon as a migration does. It is one transaction: the daemon's intake waits for it in the spool, and a store that
is busy is asked again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec.structs import replace

from metricsd.config import Paths
from metricsd.errors import StoreReplaced, StoreUnavailable, UsageError
from metricsd.migration import state
from metricsd.migration.state import RunFolder, RunState
from metricsd.store import rollbacks
from metricsd.store.choosing import NEVER_US, Choice
from metricsd.store.connection import Store
from metricsd.store.rollbacks import Done, Progress, Wanted

UNDO = "~"
"""Between a run's id and the number of a rollback of it."""
EXPRESSIONS_MAX = 1000
TRIES_MAX = 5
PAUSE_S = 0.5
_KEYS = {"session": "sessions", "user": "users", "tool": "tools", "rule": "rules"}
_US_PER_S = 1_000_000
_is_day = re.compile(r"\d{4}-\d{2}-\d{2}").fullmatch


class Asked(NamedTuple):
    """What somebody asked for: a run's id or a rollback's, and how much of it."""

    id: str
    first_part: int = 1
    where: Sequence[str] = ()
    overwrite: bool = False
    dry_run: bool = False


def take_back(paths: Paths, store: Store, asked: Asked, *, now_us: int, progress: Progress) -> Done:
    """Do what was asked; raise UsageError for what cannot be, RollbackUnproven, StoreError, and then nothing changed."""
    wanted = plan(store, paths, asked)
    folder = _folder(paths, wanted.run)
    with folder.locked() if folder is not None else contextlib.nullcontext():
        done = _patiently(lambda: rollbacks.run(store, wanted, dry_run=asked.dry_run, progress=progress))
        if folder is not None and not asked.dry_run:
            _note(folder, _state_after(wanted), now_us)
    return done


def plan(store: Store, paths: Paths, asked: Asked) -> Wanted:
    """Return what is to be taken back; raise UsageError when there is no such run or rollback here."""
    if UNDO in asked.id:
        run = rollbacks.find(store, asked.id)
        if run is None:
            raise UsageError(f"no rollback {asked.id!r} here: `metricsd migrate status ID` lists those of a migration")
        if asked.where or asked.first_part != 1:
            raise UsageError("a rollback is taken back whole: leave --from-checkpoint and --where out")
        return Wanted(run, undo=asked.id, overwrite=asked.overwrite)
    # A run whose folder is gone can be taken back all the same: everything that it needs is in the store.
    run = asked.id if rollbacks.is_known(store, asked.id) else state.find(paths, asked.id).id
    if not rollbacks.is_known(store, run):
        raise UsageError(f"nothing of migration {run} is here: what went to the cloud comes with `metricsd sync --now`")
    choice = choice_of(asked.where) if asked.where else None
    if choice is not None and not rollbacks.is_stored(store, run):
        raise UsageError(
            f"migration {run} went to the cloud alone, so this machine cannot tell its events apart: take it back whole"
        )
    return Wanted(run, asked.first_part, choice, overwrite=asked.overwrite)


def choice_of(expressions: Sequence[str]) -> Choice:
    """Return the choice that expressions name: `session=ID`, `user=NAME`, `tool=NAME`, `rule=ID`, `since=`, `until=TIME`.

    Of one kind any of several, of different kinds all. A time is a day of the local time zone or RFC 3339; `until` a day
    includes that day. Pure, but for the time zone. Raises UsageError.
    """
    if len(expressions) > EXPRESSIONS_MAX:
        raise UsageError(f"--where: at most {EXPRESSIONS_MAX} times")
    named: dict[str, list[str]] = {name: [] for name in _KEYS.values()}
    since_us, until_us = 0, NEVER_US
    for text in expressions:
        key, equals, value = text.partition("=")
        if not equals or not value or key not in (*_KEYS, "since", "until"):
            raise UsageError(f"--where {text[:80]!r}: write {', '.join(_KEYS)}, since or until, `=` and a value")
        if key == "since":
            since_us = max(since_us, _time_us(text, value, end=False))
        elif key == "until":
            until_us = min(until_us, _time_us(text, value, end=True))
        else:
            named[_KEYS[key]].append(value)
    return Choice(
        sessions=tuple(named["sessions"]),
        users=tuple(named["users"]),
        tools=tuple(named["tools"]),
        rules=tuple(named["rules"]),
        since_us=since_us,
        until_us=until_us,
    )


def _time_us(text: str, value: str, *, end: bool) -> int:
    try:
        at = datetime.fromisoformat(value)
        if end and _is_day(value):
            at += timedelta(days=1)
        return int(at.astimezone().timestamp() * _US_PER_S)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"--where {text[:80]!r}: write a day as 2026-01-31, or a time as 2026-01-31T08:00:00Z"
        ) from error


def _patiently(work: Callable[[], Done]) -> Done:
    """Ask a store again that another program holds, for a while."""
    pause_s = PAUSE_S
    for _ in range(TRIES_MAX - 1):
        try:
            return work()
        except StoreReplaced:
            raise
        except StoreUnavailable:
            time.sleep(pause_s)
            pause_s *= 2
    return work()


def _folder(paths: Paths, run: str) -> RunFolder | None:
    return next((folder for folder in state.list_runs(paths) if folder.id == run), None)


def _state_after(wanted: Wanted) -> RunState | None:
    """Return where the run stands behind it; None for where it stood."""
    if wanted.undo is not None:
        return RunState.DONE
    return RunState.ROLLED_BACK if wanted.first_part == 1 and wanted.choice is None else None


def _note(folder: RunFolder, after: RunState | None, now_us: int) -> None:
    run = folder.read()
    if after is None or (after is RunState.DONE and run.state is not RunState.ROLLED_BACK):
        return
    if after is RunState.DONE:
        # Where it stood before, as its summary says; one that was cut off has none and can be gone on with.
        after = RunState(run.summary.state) if run.summary is not None else RunState.FAILED
    folder.write(replace(run, state=after, updated_us=now_us))
