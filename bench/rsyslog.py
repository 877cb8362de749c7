"""Side by side with rsyslog's imfile, the most careful of the log tailers that a Debian system offers.

    python -m bench.rsyslog [--lines N] [--kills N] [--json]

Both follow a growing file while the same schedule kills them with -9; then lines lost and doubled are counted. Beside
it: lines a CPU second for a file that waits, and the time from an append to the line being readable at the other end.
rsyslog copies each line into a file, metricsd decodes it into SQLite. Limit: metricsd loses and doubles nothing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil

from tests.e2e.support import Home, shared_line, wait_for

SEED = 11
LINES_PER_S = 4000
LIFE_S = (0.5, 1.1)
"""Between start and kill; both are at work after 0.4 s."""
SETTLE_S = 120.0
LATENCY_LINES = 100
MISSING = "NOT COMPARED: rsyslogd is not installed here; install the package rsyslog to see it beside metricsd"
CONFIGURATION = """
global(workDirectory="{folder}/state" maxMessageSize="64k")
module(load="imfile" mode="inotify")
template(name="raw" type="string" string="%msg%\\n")
input(type="imfile" file="{source}" tag="bench" persistStateInterval="100" persistStateAfterSubmission="on")
action(type="omfile" file="{folder}/out.log" template="raw")
"""


class Follower(Protocol):
    """A program that follows one file."""

    name: str
    source: Path

    def start(self) -> subprocess.Popen[bytes]:
        """Start it."""
        ...

    def numbers(self) -> collections.Counter[int]:
        """Return what has come out at the other end: how often each line's number."""
        ...

    def count(self) -> int:
        """Return how many lines have come out, cheaply."""
        ...


class Metricsd:
    """The daemon in a home of its own."""

    name = "metricsd"

    def __init__(self, folder: Path) -> None:
        self._home = Home(folder)
        (self._home.spool / "new").mkdir(parents=True)
        self.source = self._home.spool / "shared.jsonl"

    def start(self) -> subprocess.Popen[bytes]:
        self._home.start()
        assert self._home.daemon is not None
        return self._home.daemon

    def numbers(self) -> collections.Counter[int]:
        return collections.Counter(self._home.durations())

    def count(self) -> int:
        try:
            return int(self._home.query("SELECT max(pos) FROM event")[0][0] or 0)
        except Exception:  # The database is not there yet, or without tables.
            return 0


class Rsyslog:
    """rsyslogd with imfile and one output file, its place in the file stored every hundred lines."""

    name = "rsyslog"

    def __init__(self, folder: Path) -> None:
        (folder / "state").mkdir(parents=True)
        self._folder = folder
        self.source = folder / "in.jsonl"
        self._out = folder / "out.log"
        self._configuration = folder / "rsyslog.conf"
        self._configuration.write_text(CONFIGURATION.format(folder=folder, source=self.source))

    def start(self) -> subprocess.Popen[bytes]:
        command = ["rsyslogd", "-n", "-i", str(self._folder / "pid"), "-f", str(self._configuration)]
        (self._folder / "pid").unlink(missing_ok=True)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def numbers(self) -> collections.Counter[int]:
        found: collections.Counter[int] = collections.Counter()
        for line in self._out.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, KeyError):
                found[json.loads(line)["payload"]["duration_ms"]] += 1
        return found

    def count(self) -> int:
        return self._out.read_bytes().count(b"\n") if self._out.exists() else 0


@contextlib.contextmanager
def running(follower: Follower) -> Iterator[psutil.Process]:
    """Run the follower and kill it afterwards."""
    process = follower.start()
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait(30)


def survive_kills(follower: Follower, kills: int) -> dict[str, int]:
    """Kill it at the scheduled moments while lines are appended; return how many were written, lost and doubled."""
    rnd = random.Random(SEED)
    stop = threading.Event()
    written = [0]

    def write() -> None:
        handle = os.open(follower.source, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        began = time.monotonic()
        while not stop.is_set():
            while written[0] < (time.monotonic() - began) * LINES_PER_S:
                os.write(handle, shared_line(written[0]).encode() + b"\n")
                written[0] += 1
            time.sleep(0.002)
        os.close(handle)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(kills):
            process = follower.start()
            time.sleep(rnd.uniform(*LIFE_S))
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    finally:
        stop.set()
        writer.join()
    with running(follower):
        _settle(lambda: len(follower.numbers()), written[0])
        found = follower.numbers()
    wanted = collections.Counter(range(written[0]))
    return {"written": written[0], "lost": (wanted - found).total(), "doubled": (found - wanted).total()}


def _settle(count: Callable[[], int], wanted: int) -> None:
    """Wait until everything is there, or nothing more has come for five seconds."""
    ends, last, since = time.monotonic() + SETTLE_S, -1, time.monotonic()
    while time.monotonic() < ends:
        found = count()
        if found != last:
            last, since = found, time.monotonic()
        if found >= wanted or time.monotonic() - since > 5:
            return
        time.sleep(0.2)


def lines_per_cpu_s(follower: Follower, lines: int) -> int:
    """Let it read a file that waits; return lines a second of its CPU time, its start included."""
    with follower.source.open("w") as file:
        file.writelines(shared_line(number) + "\n" for number in range(lines))
    with running(follower) as process:
        wait_for(lambda: follower.count() >= lines, f"{follower.name} reads {lines} lines", SETTLE_S)
        spent = process.cpu_times()
    return int(lines / (spent.user + spent.system))


def latencies_ms(follower: Follower) -> tuple[float, float]:
    """Return p50 and p99 from an append to the line being there, in milliseconds."""
    rnd = random.Random(SEED)
    with running(follower), follower.source.open("ab", buffering=0) as file:
        file.write(shared_line(0).encode() + b"\n")
        wait_for(lambda: follower.count() >= 1, f"{follower.name} is at work")
        taken = []
        for number in range(1, LATENCY_LINES + 1):
            time.sleep(rnd.uniform(0.005, 0.095))
            began = time.perf_counter()
            file.write(shared_line(number).encode() + b"\n")
            while follower.count() <= number and time.perf_counter() - began < 10:
                time.sleep(0.0005)
            taken.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(taken, n=100)
    return round(cuts[49], 1), round(cuts[98], 1)


def measure(make: Callable[[Path], Follower], lines: int, kills: int) -> dict[str, Any]:
    """Measure one follower, each part in a fresh folder."""
    with tempfile.TemporaryDirectory(prefix="metricsd-bench-") as folder:
        found: dict[str, Any] = survive_kills(make(Path(folder) / "kills"), kills)
        found["lines_per_cpu_s"] = lines_per_cpu_s(make(Path(folder) / "bulk"), lines)
        found["p50_ms"], found["p99_ms"] = latencies_ms(make(Path(folder) / "latency"))
    return found


def main() -> int:
    """Measure, print, and say whether the limit holds."""
    parser = argparse.ArgumentParser(description="metricsd beside rsyslog's imfile")
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {"metricsd": measure(Metricsd, args.lines, args.kills)}
    if shutil.which("rsyslogd"):
        found["rsyslog"] = measure(Rsyslog, args.lines, args.kills)
    good = found["metricsd"]["lost"] == found["metricsd"]["doubled"] == 0
    if args.json:
        print(json.dumps({**found, "compared": "rsyslog" in found, "ok": good}))
        return 0 if good else 1
    print(f"beside rsyslog: a growing file, {args.kills} kills -9 at the same moments")
    print(f"  {'':<24}" + "".join(f"{name:>12}" for name in found))
    for key in ("written", "lost", "doubled", "lines_per_cpu_s", "p50_ms", "p99_ms"):
        print(f"  {key.replace('_', ' '):<24}" + "".join(f"{one[key]:>12,}" for one in found.values()))
    if "rsyslog" not in found:
        print(f"  {MISSING}")
    print("  ok" if good else "  FAILED: metricsd must lose and double nothing")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
