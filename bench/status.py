"""`metricsd status` beside a bare Python start, with a daemon alive and without one.

    python -m bench.status [--rounds N] [--json]

The commands run interleaved, so that a busy machine slows all of them; the figures are medians. Limit: a bare start
plus 60 ms, either way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.homes import REPOSITORY, Home, opened, stop, tool_use, until

OVER_BARE_MS_MAX = 60.0
EVENTS = 200


def measure(rounds: int) -> dict[str, float]:
    """Return medians in milliseconds."""
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Path(folder) / "alive") as alive,
        opened(Path(folder) / "dead") as dead,
    ):
        alive.start_daemon("--with-cloud")
        for number in range(EVENTS):
            alive.capture("PostToolUse", tool_use(number))
        until(lambda: alive.events() == EVENTS)
        dead.capture("PostToolUse", tool_use(1))
        stop(dead.start_daemon())
        dead.capture("PostToolUse", tool_use(2))
        commands = {
            "bare_ms": (alive, ["-c", "pass"]),
            "alive_ms": (alive, ["-m", "metricsd", "status", "--json"]),
            "dead_ms": (dead, ["-m", "metricsd", "status", "--json"]),
            "screen_ms": (alive, ["-m", "metricsd", "status"]),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, (home, arguments) in commands.items():
                times[name].append(_run(home, arguments))
    return {name: round(statistics.median(found), 1) for name, found in times.items()}


def _run(home: Home, arguments: list[str]) -> float:
    # No timeout: with one, subprocess polls in growing steps, and every figure would be rounded up to the next.
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=home.env, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=False)
    return (time.perf_counter() - began) * 1000


def main() -> int:
    """Measure, print, and say whether the limit holds."""
    parser = argparse.ArgumentParser(description="Cost of `metricsd status`")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.rounds)
    over = max(found["alive_ms"], found["dead_ms"], found["screen_ms"]) - found["bare_ms"]
    good = over <= OVER_BARE_MS_MAX
    if args.json:
        print(json.dumps({**found, "over_bare_ms": round(over, 1), "ok": good}))
    else:
        print("status, medians")
        print(f"  python -c pass        {found['bare_ms']:>7} ms (the floor)")
        print(f"  --json, daemon alive  {found['alive_ms']:>7} ms")
        print(f"  --json, no daemon     {found['dead_ms']:>7} ms")
        print(f"  screen, daemon alive  {found['screen_ms']:>7} ms")
        print(f"  over the floor        {over:>7.1f} ms (at most {OVER_BARE_MS_MAX:g})")
        print("  ok" if good else "  FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
