"""Real processes in throw-away homes: what the tests of daemon and command line drive, and a way to wait for facts.

Every process that is started here is ended by its own id; nothing is ever looked up by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from metricsd.cli.status import gather
from metricsd.config import Paths, find_paths, load_config
from metricsd.instance import find_holder

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent
WITHIN_S = 20.0
STEP_S = 0.02


def until(fact: Callable[[], T], within_s: float = WITHIN_S) -> T:
    """Return the first true value of `fact`; fail with its last value when the time is up."""
    deadline = time.monotonic() + within_s
    while True:
        found = fact()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s; the last value was {found!r}")
        time.sleep(STEP_S)


class Home:
    """One home and the processes that run in it."""

    def __init__(self, root: Path, **settings: str) -> None:
        self.root = root
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("METRICSD_")}
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        if "HOME" not in settings:
            # The history of whoever runs the tests takes no part.
            self.env["METRICSD_TAIL_OLDER_HOOKS"] = ""
        self.env |= {"METRICSD_HOME": str(root), "PYTHONPATH": path, **settings}
        self.paths: Paths = find_paths(self.env)
        self.processes: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str, stdin: str = "", timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "metricsd", *arguments],
            env=self.env, cwd=REPOSITORY, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run one command that must succeed; return what it printed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that goes on running."""
        return self._popen(["-m", "metricsd", *arguments], {})

    def start_python(self, code: str, **settings: str) -> subprocess.Popen[str]:
        """Start a Python program in this home."""
        return self._popen(["-c", code], settings)

    def _popen(self, arguments: list[str], settings: dict[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=self.env | settings, cwd=REPOSITORY,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def start_daemon(self, *options: str) -> subprocess.Popen[str]:
        """Start `run` and wait until it is ready."""
        process = self.start("run", *options)

        def ready() -> bool:
            assert process.poll() is None, process.communicate()
            return bool(self.status()["daemon"]["running"])

        until(ready)
        return process

    def status(self) -> dict[str, Any]:
        """Return what `status --json` prints, without the cost of a process."""
        return gather(self.paths, load_config(self.paths, self.env))

    def capture(self, event: str, payload: dict[str, Any], *, app: str = "claude-code") -> None:
        """Fire the real hook."""
        done = subprocess.run(
            ["sh", str(REPOSITORY / "hooks" / "capture"), app, event, str(self.paths.spool)],
            input=json.dumps(payload), env=self.env, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def events(self) -> int:
        """Return how many events the store holds, as `status` says."""
        return int(self.status()["store"]["events"])

    def close(self) -> None:
        """End every process that was started here, and the daemon that a command put into the background."""
        for process in self.processes:
            stop(process)
        holder = find_holder(self.paths.lock)
        if holder is not None and holder.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGTERM)
            until(lambda: find_holder(self.paths.lock) is None)


def stop(process: subprocess.Popen[str], within_s: float = 10.0) -> int:
    """Ask a process to end, then make it; return its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(within_s)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    return int(process.returncode)


def tool_use(number: int, session: str = "s-1") -> dict[str, Any]:
    """Return a hook payload of one tool call."""
    return {
        "session_id": session,
        "hook_event_name": "PostToolUse",
        "tool_name": "Read",
        "tool_use_id": f"toolu_{number:024d}",
        "tool_input": {"file_path": "/nowhere/a.py"},
        "tool_response": {"ok": True},
    }


@contextlib.contextmanager
def opened(root: Path, **settings: str) -> Iterator[Home]:
    """Give a home and end its processes afterwards."""
    home = Home(root, **settings)
    try:
        yield home
    finally:
        home.close()
