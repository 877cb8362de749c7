"""The folder of a run: what it is about, where it stands, and the lock that lets one process at a time work on it.

`<state>/migrations/<id>/` holds `run.json` (this module), `work.db` (work.py), `ledger.jsonl` (ledger.py) and what the
report writes. `run.json` appears whole or not at all. How far a run is, its target knows: nothing here is a promise.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec
from msgspec import Struct

from metricsd.config import Paths
from metricsd.errors import AlreadyRunning, UsageError
from metricsd.migration.model import Summary

RUNS_LISTED_MAX = 10_000
_encode = msgspec.json.Encoder().encode


class RunState(StrEnum):
    """Where a run stands."""

    PLANNED = "planned"
    RUNNING = "running"
    """At work, or cut off: the lock tells."""
    PAUSED = "paused"
    """Waits for a person's word on what was rejected."""
    FAILED = "failed"
    DONE = "done"
    ROLLED_BACK = "rolled_back"


class Options(Struct, frozen=True):
    """What somebody asked for; a resumed run has the same, but for what only the resuming says."""

    sources: tuple[str, ...]
    to: tuple[str, ...] = ("store",)
    dry_run: bool = False
    users: str = "create"
    users_file: str | None = None
    default_user: str | None = None
    rules: tuple[str, ...] = ()
    """Files with further rules."""
    accept_rejects: bool = False
    batch: int = 100
    """Events in one request to the cloud."""
    dsn_variable: str | None = None
    """Name of the environment variable with the DSN of an administrator's PostgreSQL; the DSN itself is kept nowhere."""
    tenant: str | None = None
    user: str | None = None
    """The tenant and the user whose history it is, in that database."""


class Run(Struct, frozen=True):
    """One run. Times are microseconds UTC."""

    id: str
    options: Options
    state: RunState = RunState.PLANNED
    created_us: int = 0
    updated_us: int = 0
    seconds: float = 0.0
    """Time at work, of all attempts together."""
    reason: str = ""
    summary: Summary | None = None


_decode = msgspec.json.Decoder(Run).decode


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work.db"
        self.ledger = path / "ledger.jsonl"
        self.report = path / "report"

    @property
    def id(self) -> str:
        """The run's id."""
        return self.path.name

    def read(self) -> Run:
        """Return the run; raise UsageError for a folder that holds none."""
        try:
            return _decode((self.path / "run.json").read_bytes())
        except (OSError, msgspec.MsgspecError) as error:
            raise UsageError(f"no migration {self.id}: `metricsd migrate list` shows all") from error

    def write(self, run: Run) -> None:
        """Store the run, whole or not at all."""
        partial = self.path / "run.json.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_encode(run))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / "run.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; raise AlreadyRunning when another process does."""
        descriptor = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunning(f"migration {self.id} is at work: `metricsd migrate status` shows it") from None
            yield
        finally:
            os.close(descriptor)

    def is_at_work(self) -> bool:
        """Return whether a process works on the run now."""
        try:
            with self.locked():
                return False
        except AlreadyRunning:
            return True


def folder_of(paths: Paths) -> Path:
    """Return where the folders of all runs are."""
    return paths.state_dir / "migrations"


def create(paths: Paths, options: Options, now_us: int) -> RunFolder:
    """Make the folder of a new run."""
    day = datetime.fromtimestamp(now_us / 1e6, UTC).strftime("%Y%m%d-%H%M%S")
    folder = RunFolder(folder_of(paths) / f"m{day}-{secrets.token_hex(3)}")
    folder.path.mkdir(mode=0o700, parents=True)
    folder.write(Run(folder.path.name, options, created_us=now_us, updated_us=now_us))
    return folder


def find(paths: Paths, run_id: str) -> RunFolder:
    """Return a run by its id, or by the beginning of one; raise UsageError when there is none or more than one."""
    found = [folder for folder in list_runs(paths) if folder.id.startswith(run_id)]
    exact = [folder for folder in found if folder.id == run_id]
    if len(exact or found) != 1:
        what = "no migration" if not found else f"{len(found)} migrations begin with"
        raise UsageError(f"{what} {run_id!r}: `metricsd migrate list` shows all")
    return (exact or found)[0]


def list_runs(paths: Paths) -> list[RunFolder]:
    """Return all runs, the oldest first."""
    folder = folder_of(paths)
    if not folder.is_dir():
        return []
    return [RunFolder(path) for path in sorted(folder.iterdir())[:RUNS_LISTED_MAX] if (path / "run.json").exists()]
