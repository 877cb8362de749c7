"""The pairs of shells and awks that the hook is run with, and a look at the processes it left."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.hooks.programs import AWKS, CAPTURE, DEADLINE_S, SHELLS, run_capture

NOBODY = 65534
REPRESENTATIVE = {
    ("dash", "mawk"),
    ("bash", "gawk"),
    ("bash-posix", "bwk-awk"),
    ("zsh-sh", "busybox-awk"),
    ("busybox-sh", "busybox-awk"),
    ("sh", "mawk"),
}
PAIRS = list(itertools.product(SHELLS, AWKS))
assert set(PAIRS) >= REPRESENTATIVE
all_pairs = pytest.mark.parametrize(("shell", "awk"), PAIRS)
some_pairs = pytest.mark.parametrize(
    ("shell", "awk"),
    [pytest.param(*pair, marks=() if pair in REPRESENTATIVE else pytest.mark.soak) for pair in PAIRS],
)


class Pair(NamedTuple):
    """A shell and an awk, ready to run the hook."""

    command: list[str]
    env: dict[str, str]

    def run(self, payload: bytes, spool: Path | None, **options: Any) -> None:
        """Run the hook; exit 0 and silence are asserted."""
        env = {**self.env, **options.pop("env", {})}
        run_capture(payload, spool, shell=self.command, env=env, **options)

    def start(self, spool: Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start the hook in a process group of its own, with a payload that has not ended."""
        return subprocess.Popen(
            [*self.command, str(CAPTURE), "app", "Stop", str(spool)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.env},
            start_new_session=True,
            # A test run that was started in the background ignores it, and a shell cannot trap what it was told to ignore.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )


def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact."""
    deadline = time.monotonic() + DEADLINE_S
    while not fact():
        assert time.monotonic() < deadline, "the fact never came"
        os.sched_yield()


def group(leader: int) -> list[int]:
    """Return the living processes of a group; what only waits to be reaped is dead."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(of) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def wait_until_gone(leader: int) -> None:
    """Wait until no process of a group lives."""
    until(lambda: not group(leader))


def is_reading(leader: int) -> bool:
    """Return whether the awk of a group runs, which its program in the command line tells from the shell."""
    for number in group(leader):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"srand()" in Path(f"/proc/{number}/cmdline").read_bytes():
                return True
    return False
