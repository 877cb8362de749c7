"""An idle daemon: processor time and memory of the whole process tree, without a page or port open.

    python -m bench.idle [--seconds N] [--with-cloud] [--json]

Beside it, from the same run, a Python process that only sleeps in asyncio. Limits: 0.2 % of one processor, 60 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.homes import opened, tool_use, until

CPU_PERCENT_MAX = 0.2
RSS_MB_MAX = 60.0
SETTLE_S = 3.0
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
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
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
