"""Real processes for end-to-end tests: daemons in homes of their own, writers, and an outside look at the data.

What is stored is read with plain sqlite3 and SQL of its own, not through the product's code.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CAPTURE = ROOT / "hooks" / "capture"
DEADLINE_S = 60.0


def wait_for(fact: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of `fact`; fail loudly when there is none in time."""
    ends = time.monotonic() + deadline_s
    while True:
        found = fact()
        if found:
            return found
        assert time.monotonic() < ends, f"not in {deadline_s} s: {what}"
        time.sleep(0.02)


class Home:
    """One METRICSD_HOME and what is run in it."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        values = {f"METRICSD_{name.upper()}": str(value) for name, value in settings.items()}
        self.environment = {**os.environ, **values, "METRICSD_HOME": str(folder), "PYTHONPATH": str(ROOT)}
        self.daemon: subprocess.Popen[bytes] | None = None

    @property
    def spool(self) -> Path:
        return self.folder / "state" / "spool"

    @property
    def store(self) -> Path:
        return self.folder / "state" / "store.db"

    def run(self, *arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        command = [sys.executable, "-m", "metricsd", *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
            cwd=self.folder,
        )
        assert not check or done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, stdin: str | None = None) -> Any:
        """Run one command with --json and return what it printed."""
        return json.loads(self.run(*arguments, "--json", stdin=stdin).stdout)

    def status(self) -> dict[str, Any]:
        """Return `status --json`, whatever its exit code."""
        found: dict[str, Any] = json.loads(self.run("status", "--json", check=False).stdout)
        return found

    def start(self, *arguments: str) -> None:
        """Start the daemon, without waiting for it."""
        with (self.folder / "daemon.out").open("ab") as out:
            command = [sys.executable, "-m", "metricsd", "run", *arguments]
            self.daemon = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder
            )

    def start_ready(self, *arguments: str) -> None:
        """Start the daemon and wait until it says that it runs."""
        self.start(*arguments)
        wait_for(lambda: self.status()["daemon"]["running"], f"daemon in {self.folder} runs: {self.output()}")

    def output(self) -> str:
        """Return what the daemon printed."""
        path = self.folder / "daemon.out"
        return path.read_text() if path.exists() else ""

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon that this test started and return its exit code."""
        assert self.daemon is not None
        self.daemon.send_signal(how)
        code = self.daemon.wait(30)
        self.daemon = None
        return code

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Read the store with a connection of this test's own."""
        with sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=10) as db:
            rows = db.execute(sql).fetchall()
        db.close()
        return rows

    def durations(self) -> list[int]:
        """Return the duration of every stored tool call: the tests' events carry their number there."""
        if not self.store.exists():
            return []
        return sorted(row[0] for row in self.query("SELECT duration_ms FROM event WHERE duration_ms IS NOT NULL"))

    def newest(self) -> int:
        """Return the newest own position in the store; 0 before there is one."""
        try:
            return int(self.query("SELECT coalesce(max(pos), 0) FROM event")[0][0])
        except sqlite3.OperationalError:
            return 0

    def settled(self, count: int) -> bool:
        """Return whether nothing waits in the spool and `count` calls are stored."""
        return not any((self.spool / "new").iterdir()) and len(self.durations()) >= count


@contextmanager
def homes(folder: Path, *names: str, **settings: object) -> Iterator[list[Home]]:
    """Make homes and end whatever daemon is left in them."""
    made = [Home(folder / name, **settings) for name in names]
    try:
        yield made
    finally:
        for home in made:
            if home.daemon is not None:
                home.daemon.kill()
                home.daemon.wait(30)


def shared_line(number: int) -> str:
    """Return a line for a shared file whose event carries `number`."""
    payload = {
        "session_id": f"s{number % 7}",
        "tool_name": "Bash",
        "tool_use_id": f"toolu_{number:08x}",
        "duration_ms": number,
    }
    return json.dumps(
        {"v": 1, "app": "claude-code", "event": "PostToolUse", "ts": 1_790_000_000_000 + number, "payload": payload}
    )


WRITER = """
import json, os, subprocess, sys, time
capture, spool, first, stop, rest = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
number = first
while not os.path.exists(stop) and number < first + 1_000_000:
    began = time.perf_counter()
    for _ in range(3):
        payload = {"session_id": f"s{number % 7}", "tool_name": "Bash", "tool_use_id": f"toolu_{number:08x}", "duration_ms": number}
        if number % 3 == 0:
            subprocess.run([capture, "claude-code", "PostToolUse", spool], input=json.dumps(payload, indent=1).encode(), check=True)
        else:
            line = {"v": 1, "app": "claude-code", "event": "PostToolUse", "ts": 1_790_000_000_000 + number, "payload": payload}
            handle = os.open(os.path.join(spool, "shared.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(handle, json.dumps(line).encode() + b"\\n")
            os.close(handle)
        number += 1
    time.sleep(rest * (time.perf_counter() - began))
print(number)
"""
"""Writes captures by the real hook and shared lines by single appends until the stop file exists; prints the next number."""

WRITER_SPAN = 1_000_000


class Writers:
    """Processes that write numbered events, and rest `rest` times as long as they write: 0 is as fast as they can."""

    def __init__(self, home: Home, count: int, rest: float) -> None:
        self._stop = home.folder / "stop-writers"
        (home.spool / "new").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", WRITER, str(CAPTURE), str(home.spool)]
        self._processes = [
            subprocess.Popen(
                [*command, str(n * WRITER_SPAN), str(self._stop), str(rest)],
                stdout=subprocess.PIPE,
                text=True,
                env=home.environment,
            )
            for n in range(count)
        ]

    def finish(self) -> list[int]:
        """Stop writing and return every number that was written."""
        self._stop.touch()
        numbers: list[int] = []
        for n, process in enumerate(self._processes):
            out, _ = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0
            numbers.extend(range(n * WRITER_SPAN, int(out)))
        return numbers

    def abandon(self) -> None:
        """End what is left after a failed test."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(30)
