"""A cloud, a gate before it and a daemon behind it, as real processes, and what the failover tests look at.

All time limits are a twentieth of the defaults in CI; `FULL` is for soak. What is stored is read with SQL of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.e2e.gate import Gate
from tests.homes import REPOSITORY, Home, stop, until

SHARE = 20.0
"""CI runs with time limits divided by this."""
SLACK_S = 2.5
"""What a busy machine with two cores may add: processes share it with the rest of the suite."""
SLACK_FULL_S = 1.0
_TIMES = {
    "FAILOVER_DWELL_S": 5.0, "FAILOVER_DETECT_S": 20.0, "FAILOVER_PROBE_TIMEOUT_S": 8.0, "FAILOVER_PROBE_S": 5.0,
    "FAILOVER_PROBE_LATE_S": 25.0, "FAILOVER_LATE_AFTER_S": 600.0, "FAILOVER_SLOW_S": 5.0, "FAILOVER_SETTLE_S": 10.0,
    "SYNC_INTERVAL_S": 300.0, "SYNC_CONNECT_TIMEOUT_S": 5.0, "SYNC_REQUEST_TIMEOUT_S": 30.0,
    "SYNC_BACKOFF_MAX_S": 300.0, "STORE_CHECK_S": 2.0, "CLOUD_HEARTBEAT_S": 15.0, "TAIL_RESCAN_S": 5.0,
}  # fmt: skip
DETECT_S, RECOVER_S = 20.0, 15.0
BOUND = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
library = ctypes.CDLL(None)
for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
    library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "metricsd", "run"])
"""
"""Runs the daemon without root's right to write what permissions forbid; a normal user never had it."""


class Pace:
    """How fast time runs: limits are divided by `share`."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.slack_s = SLACK_S if share > 1 else SLACK_FULL_S

    def settings(self) -> dict[str, str]:
        """Return every time limit as the environment sets it."""
        return {f"METRICSD_{name}": f"{value / self.share:g}" for name, value in _TIMES.items()}

    def within(self, seconds: float) -> float:
        """Return a promise of the design at this pace, with slack."""
        return seconds / self.share + self.slack_s


class CloudProcess:
    """`metricsd cloud serve` on one port, which can be killed, stopped and started again."""

    def __init__(self, folder: Path, pace: Pace) -> None:
        self.home = Home(folder, **pace.settings())
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "metricsd", "cloud", "serve", "--port", str(self.port), "--json"],
            env=self.home.env, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.port = int(json.loads(line)["url"].rsplit(":", 1)[1])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def token(self) -> str:
        """Return a new enrolment token."""
        if "team" not in self.home.ok("cloud", "tenant", "list"):
            self.home.ok("cloud", "tenant", "create", "team")
        made = json.loads(self.home.ok("cloud", "token", "create", "--tenant", "team", "--user", "ann", "--json"))
        return str(made["token"])

    def revoke_devices(self) -> None:
        """End the login of every device."""
        for device in json.loads(self.home.ok("cloud", "device", "list", "--tenant", "team", "--json")):
            if not device.get("revoked_at"):
                self.home.ok("cloud", "device", "revoke", str(device["id"]))

    def numbers(self) -> Counter[int]:
        """Return the durations of all events that it holds."""
        found: Counter[int] = Counter()
        for file in self.home.paths.cloud.glob("t_*.db"):
            # A file that is being made has no table yet.
            with (
                contextlib.suppress(sqlite3.OperationalError),
                contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as db,
            ):
                found.update(row[0] for row in db.execute("SELECT duration_ms FROM event"))
        return found


class Setup:
    """One device behind a gate, logged in, with its daemon running."""

    def __init__(
        self, root: Path, pace: Pace, cloud: CloudProcess, gate: Gate, *, home: Path | None = None, **settings: str
    ) -> None:
        self.pace = pace
        self.cloud = cloud
        self.gate = gate
        self.device = Home(home or root / "device", **(pace.settings() | settings))
        self.written: list[int] = []
        self.daemon: subprocess.Popen[str] | None = None

    def login(self) -> None:
        """Log in through the gate."""
        self.device.ok("login", f"http://127.0.0.1:{self.gate.port}", "--token-stdin", stdin=self.cloud.token())

    def start(self) -> None:
        """Start the daemon and wait until it is ready. Even as root it is bound by permissions."""
        self.daemon = process = self.device.start_python(BOUND)

        def ready() -> bool:
            assert process.poll() is None, process.communicate()
            return bool(self.device.status()["daemon"]["running"])

        until(ready)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon."""
        assert self.daemon is not None
        self.daemon.send_signal(how)
        self.daemon.wait(20)
        self.daemon = None

    def capture(self, count: int = 5) -> list[int]:
        """Fire the real hook; failures, so that they are sent within a second."""
        numbers = [len(self.written) + 1 + n for n in range(count)]
        for number in numbers:
            self.device.capture(
                "PostToolUseFailure",
                {
                    "session_id": "s-1", "hook_event_name": "PostToolUseFailure", "tool_name": "Read",
                    "tool_use_id": f"toolu_{number:024d}", "tool_input": {}, "error": "no", "duration_ms": number,
                },
            )  # fmt: skip
        self.written += numbers
        return numbers

    def mode(self) -> tuple[str, str]:
        """Return the mode in force and its reason."""
        found = self.device.status()["mode"]
        return str(found["current"]), str(found["reason"])

    def since(self) -> float:
        """Return when the mode was entered, as epoch seconds."""
        return datetime.fromisoformat(self.device.status()["mode"]["since"]).timestamp()

    def await_calm(self) -> None:
        """Wait until all is well for longer than a dwell: only then does the next change come at once."""
        dwell_s = _TIMES["FAILOVER_DWELL_S"] / self.pace.share
        until(lambda: self.mode()[0] == "hybrid" and time.time() - self.since() > dwell_s, 60.0)

    def await_mode(self, mode: str, within_s: float, *, reason: str = "", after: float = 0.0) -> float:
        """Wait for a mode; return how many seconds after `after` it was entered."""

        def is_there() -> bool:
            current, why = self.mode()
            return current == mode and reason in why

        try:
            until(is_there, within_s + 10)
        except AssertionError as error:
            raise AssertionError(f"{mode} {reason}: it is {self.mode()}; {self.history()}") from error
        took = self.since() - after
        assert took <= within_s, (mode, took, within_s, self.history())
        return took

    def history(self) -> list[dict[str, Any]]:
        """Return the changes of mode."""
        found: list[dict[str, Any]] = json.loads(self.device.ok("mode", "--history", "--json"))
        return found

    def stored(self) -> Counter[int]:
        """Return the durations of all events in the device's store."""
        path = self.device.paths.store
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
            return Counter(row[0] for row in db.execute("SELECT duration_ms FROM event"))

    def settle(self, *, missing_here: int = 0) -> None:
        """Wait until all is well; then everything is in store and cloud exactly once."""
        wanted = Counter(self.written)
        within_s = 60.0

        def is_well() -> bool:
            return self.mode()[0] == "hybrid" and not any((self.device.paths.spool / "new").iterdir())

        until(is_well, within_s)

        def is_synced() -> bool:
            return self.cloud.numbers().total() >= len(wanted)

        until(is_synced, within_s)
        self.device.ok("sync", "--now", "--json")
        assert self.cloud.numbers() == wanted
        assert self.stored() == wanted

    def close(self) -> None:
        """End the daemon, whatever state it is in."""
        if self.daemon is not None and self.daemon.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.daemon.pid, signal.SIGCONT)
            stop(self.daemon)
        self.device.close()


@contextlib.contextmanager
def setup(root: Path, pace: Pace, *, home: Path | None = None, **settings: str) -> Iterator[Setup]:
    """Give a cloud, a gate and a device whose daemon is in hybrid mode; `settings` are the device's."""
    cloud = CloudProcess(root / "cloud", pace)
    cloud.home.ok("cloud", "tenant", "create", "team")
    cloud.start()
    try:
        with Gate(cloud.port) as gate:
            made = Setup(root, pace, cloud, gate, home=home, **settings)
            try:
                made.login()
                made.start()
                until(lambda: made.mode()[0] == "hybrid")
                yield made
            finally:
                made.close()
    finally:
        with contextlib.suppress(ProcessLookupError, AssertionError):
            cloud.signal(signal.SIGCONT)
        cloud.kill()
        cloud.home.close()


def now() -> float:
    """Return wall time, as the history of modes has it."""
    return time.time()
