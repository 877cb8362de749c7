"""What every service manager here can do, and what it says of the daemon; and how its programs are run.

A manager's command is always bounded in time and never asks anything of a person. What it prints on failure is handed
on, because only it knows what it did not like.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from metricsd.errors import ServiceError

COMMAND_TIMEOUT_S = 30.0
START_TIMEOUT_S = 120.0
"""A first start makes the store; an upgrade of a large one may take longer, and goes on by itself then."""


class Done(NamedTuple):
    """What a program did."""

    code: int
    out: str
    error: str


Run = Callable[[Sequence[str], float], Done]


class Standing(NamedTuple):
    """How the service stands. `current`: it is what an installation would write now; `state` is the manager's word."""

    manager: str
    name: str
    file: Path | None
    installed: bool
    current: bool
    enabled: bool | None
    running: bool
    state: str
    pid: int | None
    says: str
    lingers: bool | None


class Manager(Protocol):
    """A service manager of this user."""

    name: str

    def standing(self) -> Standing:
        """Return how this home's service stands; never fails."""
        ...

    def install(self, *, with_cloud: bool) -> bool:
        """Write the unit and have it started at login; return whether anything changed. Does not start it."""
        ...

    def start(self) -> None:
        """Start it, or start it anew, and return when it is ready; raise ServiceError with the manager's reason."""
        ...

    def uninstall(self) -> bool:
        """Stop it and remove the unit; return whether there was one."""
        ...

    def log_command(self, lines: int, *, follow: bool) -> list[str]:
        """Return the words that show what the service printed."""
        ...


def run_command(words: Sequence[str], timeout_s: float) -> Done:
    """Run a program of the manager's to its end; a missing one has code 127, one that takes too long 124."""
    environ = {**os.environ, "LC_ALL": "C", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
    try:
        done = subprocess.run(
            list(words),
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        return Done(127, "", f"{words[0]}: not found")
    except subprocess.TimeoutExpired:
        return Done(124, "", f"{words[0]}: no answer within {timeout_s:g} s")
    except OSError as error:
        return Done(126, "", f"{words[0]}: {error.strerror}")
    return Done(done.returncode, done.stdout, done.stderr)


def demand(run: Run, words: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> Done:
    """Run a command that must succeed; raise ServiceError with what it said."""
    done = run(words, timeout_s)
    if done.code != 0:
        said = " ".join((done.error or done.out).split())[:500] or f"exit code {done.code}"
        raise ServiceError(f"`{' '.join(words)}` failed ({said})")
    return done


def write_unit(file: Path, data: bytes) -> bool:
    """Write a unit in one step, readable by all as such files are; return whether it was another one before."""
    try:
        if file.is_file() and file.read_bytes() == data:
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_bytes(data)
        draft.chmod(0o644)
        draft.replace(file)
    except OSError as error:
        raise ServiceError(f"{file}: cannot be written ({error.strerror}): check the folder's permissions") from error
    return True


def read_unit(file: Path) -> bytes | None:
    """Return the unit that lies there, None without one."""
    try:
        return file.read_bytes()
    except OSError:
        return None


def fields_of(text: str) -> Mapping[str, str]:
    """Return `KEY=value` lines as a mapping."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
