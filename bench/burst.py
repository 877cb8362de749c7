"""A hundred thousand captures after two weeks without a daemon: how fast they come in, and when the newest shows.

    python -m bench.burst [--captures N] [--json]

Prints captures per second from the daemon's start to the last commit, peak memory of the daemon, how long the
newest capture of the backlog and one written during it took to be visible, and what `status` said on the way.
Limits: 5,000 a second, 150 MB, 5 s for either. The floor opens, reads and unlinks the same files and stores nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PER_S_MIN = 5_000
RSS_MB_MAX = 150
VISIBLE_S_MAX = 5.0
DEADLINE_S = 120
TWO_WEEKS_S = 14 * 86_400


def write_captures(new: Path, count: int) -> None:
    """Write captures as the hook does, spread over the last two weeks."""
    now = int(time.time())
    for n in range(count):
        write_capture(new, n, now - TWO_WEEKS_S + n * TWO_WEEKS_S // count)


def write_capture(new: Path, n: int, second: int) -> None:
    """Write one finished capture whose call carries `n` as its duration."""
    payload = {
        "session_id": f"{n // 50:032x}", "cwd": "/nowhere/shop", "permission_mode": "default", "tool_name": "Bash",
        "tool_input": {"command": "git status"}, "tool_use_id": f"toolu_{n:022x}", "duration_ms": n,
        "tool_response": {"stdout": "x" * (n % 200)},
    }  # fmt: skip
    line = json.dumps({"v": 1, "s": second, "app": "claude-code", "event": "PostToolUse", "payload": payload})
    path = new / f"PostToolUse-{n}-1-0.jsonl"
    path.write_text(line + "\n")
    os.utime(path, (second, second))


def run_floor(count: int) -> float:
    """Return how many files a second can be opened, read and unlinked when nothing is done with them."""
    with tempfile.TemporaryDirectory(prefix="metricsd-bench-") as folder:
        new = Path(folder)
        write_captures(new, count)
        began = time.monotonic()
        for name in os.listdir(new):
            handle = os.open(new / name, os.O_RDONLY)
            os.read(handle, 1 << 20)
            os.close(handle)
            os.unlink(new / name)
        return count / (time.monotonic() - began)


def stored(store: Path, sql: str) -> int:
    """Return one number from the store, 0 while there is none."""
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=5) as db:
            found = int(db.execute(sql).fetchone()[0])
        db.close()
    except sqlite3.Error:
        return 0
    return found


def wait(daemon: subprocess.Popen[bytes], store: Path, sql: str, wanted: int) -> float:
    """Return when `sql` first gave at least `wanted`; raise RuntimeError when the daemon ended or time is over."""
    ends = time.monotonic() + DEADLINE_S
    while stored(store, sql) < wanted:
        if time.monotonic() > ends or daemon.poll() is not None:
            raise RuntimeError(f"{sql} did not reach {wanted}; the daemon's exit code is {daemon.poll()}")
        time.sleep(0.02)
    return time.monotonic()


def peak_mb(pid: int) -> float:
    """Return a process's peak memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(count: int) -> dict[str, Any]:
    """Fill a spool, start a daemon on it, and watch it from outside."""
    floor = run_floor(min(count, 20_000))
    with tempfile.TemporaryDirectory(prefix="metricsd-bench-") as folder:
        home = Path(folder)
        new, store = home / "state" / "spool" / "new", home / "state" / "store.db"
        new.mkdir(parents=True)
        write_captures(new, count)
        environment = {**os.environ, "METRICSD_HOME": folder, "PYTHONPATH": str(ROOT)}
        daemon = subprocess.Popen(
            [sys.executable, "-m", "metricsd", "run"], env=environment, cwd=folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            begun = wait(daemon, store, "SELECT count(*) FROM event", 1)
            newest = wait(daemon, store, f"SELECT count(*) FROM event WHERE duration_ms = {count - 1}", 1)
            write_capture(new, count, int(time.time()))
            written = time.monotonic()
            fresh = wait(daemon, store, f"SELECT count(*) FROM event WHERE duration_ms = {count}", 1)
            status = json.loads(
                subprocess.run(
                    [sys.executable, "-m", "metricsd", "status", "--json"],
                    env=environment, cwd=folder, capture_output=True, check=False,
                ).stdout
            )  # fmt: skip
            before = stored(store, "SELECT count(*) FROM event")
            ended = wait(daemon, store, "SELECT count(*) FROM event", count + 1)
            rss = peak_mb(daemon.pid)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)
        total = stored(store, "SELECT count(*) FROM event")
        distinct = stored(store, "SELECT count(DISTINCT duration_ms) FROM event")
    return {
        "captures": count,
        "per_s": round((count + 1) / (ended - begun)) if ended > begun else count,
        "floor_per_s": round(floor),
        "rss_mb": round(rss, 1),
        "newest_visible_s": round(newest - begun, 2),
        "new_visible_s": round(fresh - written, 2),
        "status_while": {key: status["spool"].get(key) for key in ("pending_files", "taking_per_s", "eta_s")},
        "stored_while": before,
        "truth": "equal" if total == distinct == count + 1 else f"{total} events, {distinct} distinct",
    }


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description="Burst of captures after a long stop")
    parser.add_argument("--captures", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.captures)
    good = (
        found["per_s"] >= PER_S_MIN
        and found["rss_mb"] <= RSS_MB_MAX
        and max(found["newest_visible_s"], found["new_visible_s"]) <= VISIBLE_S_MAX
        and found["truth"] == "equal"
    )
    if args.json:
        print(json.dumps({**found, "ok": good}))
    else:
        print(f"burst, {found['captures']:,} captures that waited")
        print(
            f"  captures a second     {found['per_s']:>9,}   (at least {PER_S_MIN:,}; files alone {found['floor_per_s']:,})"
        )
        print(f"  peak memory           {found['rss_mb']:>9} MB (at most {RSS_MB_MAX})")
        print(f"  newest of them shows  {found['newest_visible_s']:>9} s  (at most {VISIBLE_S_MAX:g})")
        print(f"  a new one shows       {found['new_visible_s']:>9} s  (at most {VISIBLE_S_MAX:g})")
        print(f"  status on the way     {found['status_while']}")
        print(f"  truth                 {found['truth']:>9}")
        print("  ok" if good else "  FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
