"""An idle daemon: processor time and memory of the whole process tree, without a page or port open.

    python -m bench.idle [--seconds N] [--with-cloud] [--json]
    python -m bench.idle --soak HOURS

Beside it, from the same run, a Python process that only sleeps in asyncio. Limits: 0.2 % of one processor, 60 MB.
`--soak` lets a daemon that is logged in to a cloud idle for hours, and prints what grows by how much an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from metricsd.analytics.trends import slope
from tests.homes import Home, opened, tool_use, until

CPU_PERCENT_MAX = 0.2
RSS_MB_MAX = 60.0
SETTLE_S = 3.0
SAMPLES = 96
"""Of a soak, evenly over its hours: one each five minutes of eight."""
WARM_SHARE = 0.25
"""The first part of a soak, in which caches fill, is shown and not judged."""
RSS_MB_PER_HOUR_MAX = 0.5
FILES_PER_HOUR_MAX = 0.5
BARE = "import asyncio; asyncio.run(asyncio.sleep(86400))"


def measure(seconds: float, *, with_cloud: bool) -> dict[str, float]:
    """Return CPU in percent of one processor, RSS in MB, and the same of a bare asyncio process."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "home") as home:
        daemon = home.start_daemon(*(["--with-cloud"] if with_cloud else []))
        home.capture("PostToolUse", tool_use(1))
        until(lambda: home.events() == 1)
        bare = subprocess.Popen([sys.executable, "-c", BARE])
        try:
            time.sleep(SETTLE_S)
            before = [cpu_s(daemon.pid), cpu_s(bare.pid)]
            time.sleep(seconds)
            used = [cpu_s(pid) - was for pid, was in zip((daemon.pid, bare.pid), before, strict=True)]
            return {
                "seconds": seconds,
                "cpu_percent": round(used[0] / seconds * 100, 3),
                "rss_mb": round(rss(daemon.pid) / 1e6, 1),
                "threads": sum(process.num_threads() for process in _tree(daemon.pid)),
                "bare_cpu_percent": round(used[1] / seconds * 100, 3),
                "bare_rss_mb": round(rss(bare.pid) / 1e6, 1),
            }
        finally:
            bare.kill()
            bare.wait()


class Sample(NamedTuple):
    """What a daemon held at a moment of a soak; `cpu_s` is what it has used so far."""

    at_s: float
    rss_mb: float
    files: int
    threads: int
    cpu_s: float


class Growth(NamedTuple):
    """What grew by how much an hour, by least squares over the samples after the warm part, and the processor's share."""

    rss_mb_per_hour: float
    files_per_hour: float
    cpu_percent: float

    @property
    def ok(self) -> bool:
        """Whether it holds the limits."""
        return (
            self.rss_mb_per_hour <= RSS_MB_PER_HOUR_MAX
            and self.files_per_hour <= FILES_PER_HOUR_MAX
            and self.cpu_percent < CPU_PERCENT_MAX
        )


def growth(samples: Sequence[Sample]) -> Growth:
    """Return what grew. Pure. Samples are evenly spaced; three at least."""
    warm = samples[int(len(samples) * WARM_SHARE) :]
    seconds = warm[-1].at_s - warm[0].at_s
    per_hour = 3600.0 * (len(warm) - 1) / seconds
    return Growth(
        round(slope([one.rss_mb for one in warm]) * per_hour, 4),
        round(slope([float(one.files + one.threads) for one in warm]) * per_hour, 4),
        round((warm[-1].cpu_s - warm[0].cpu_s) / seconds * 100, 3),
    )


def soak(hours: float, *, samples: int = SAMPLES, say: Callable[[str], None] = print) -> Growth:
    """Let a daemon that is logged in idle for hours, say each sample and the slope, and return what grew."""
    seen: list[Sample] = []
    with _logged_in() as home:
        daemon = home.start_daemon()
        until(lambda: home.status()["sync"]["last_success"] is not None)
        began = time.monotonic()
        for number in range(samples):
            time.sleep(max(began + (number + 1) * hours * 3600 / samples - time.monotonic(), 0.0))
            process = psutil.Process(daemon.pid)
            seen.append(
                Sample(
                    time.monotonic() - began, rss(daemon.pid) / 1e6, process.num_fds(), process.num_threads(),
                    cpu_s(daemon.pid),
                )
            )  # fmt: skip
            last = seen[-1]
            say(f"{last.at_s / 3600:>6.2f} h  {last.rss_mb:>6.1f} MB  {last.files} files  {last.threads} threads")
    found = growth(seen)
    say(
        f"slope after the first {WARM_SHARE:.0%}: {found.rss_mb_per_hour:+.3f} MB an hour (at most {RSS_MB_PER_HOUR_MAX:g}), "
        f"{found.files_per_hour:+.3f} files and threads an hour (at most {FILES_PER_HOUR_MAX:g}), "
        f"{found.cpu_percent:g} % of a processor (less than {CPU_PERCENT_MAX:g})"
    )
    return found


@contextlib.contextmanager
def _logged_in() -> Iterator[Home]:
    """Give a home that is a device of a cloud, which runs beside it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Path(folder) / "cloud") as server,
        opened(Path(folder) / "home") as home,
    ):
        server.start_daemon("--with-cloud")
        made = json.loads(server.ok("cloud", "token", "create", "--tenant", "local", "--user", "local", "--json"))
        home.ok("login", server.status()["sync"]["url"], "--token-stdin", stdin=made["token"])
        yield home


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cpu_s(pid: int) -> float:
    """Return processor seconds so far, in the kernel's nanoseconds where it tells them: ticks of 10 ms are too coarse."""
    total = 0.0
    for process in _tree(pid):
        threads = Path(f"/proc/{process.pid}/task")
        if threads.is_dir():
            total += sum(int((task / "schedstat").read_text().split()[0]) for task in threads.iterdir()) / 1e9
        else:
            times = process.cpu_times()
            total += times.user + times.system
    return total


def rss(pid: int) -> int:
    return sum(int(process.memory_info().rss) for process in _tree(pid))


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description="Cost of an idle daemon")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--with-cloud", action="store_true", help="show what the embedded cloud adds; no limit applies")
    parser.add_argument("--soak", type=float, metavar="HOURS", help="idle for hours and print the slope")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.soak is not None:
        return 0 if soak(args.soak).ok else 1
    found = measure(args.seconds, with_cloud=args.with_cloud)
    good = args.with_cloud or (found["cpu_percent"] < CPU_PERCENT_MAX and found["rss_mb"] <= RSS_MB_MAX)
    if args.json:
        print(json.dumps({**found, "ok": good}))
    else:
        print(f"idle for {found['seconds']:g} s")
        print(
            f"  processor  {found['cpu_percent']:>7} %  (less than {CPU_PERCENT_MAX:g}; bare asyncio {found['bare_cpu_percent']})"
        )
        print(f"  memory     {found['rss_mb']:>7} MB (at most {RSS_MB_MAX:g}; bare asyncio {found['bare_rss_mb']})")
        print("  ok" if good else "  FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
