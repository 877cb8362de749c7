"""Tail of a shared file of a million lines into the store, beside a bare msgspec + sqlite3 loop on the same file.

    python -m bench.tail [--lines N] [--json]

Prints lines per CPU second, peak memory of the tailing process, database bytes an event, and whether the stored
totals equal the truth that was written beside the lines. Limits: 60,000 lines/CPU s, 100 MB, 120 bytes an event.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

LINES_PER_CPU_S_MIN = 60_000
RSS_MB_MAX = 100
BYTES_PER_EVENT_MAX = 120
TOOLS = ["Bash", "Read", "Edit", "Grep", "Write", "Glob", "Task", "TodoWrite", "mcp__github__search"]
WEIGHTS = [30, 28, 16, 8, 6, 5, 3, 2, 2]
PROJECTS = ["metricsd", "webshop-api", "mobile-app", "infra", "données-été", "docs"]
START_MS = 1_767_600_000_000


class Truth(msgspec.Struct):
    """What a correct reader must find."""

    events: int = 0
    sessions: int = 0
    by_tool: dict[str, list[int]] = {}


class FloorPayload(msgspec.Struct):
    """The fields that the bare loop reads."""

    session_id: str
    tool_name: str | None = None
    duration_ms: int | None = None


class FloorLine(msgspec.Struct):
    """The wrapper that the bare loop reads."""

    app: str
    event: str
    ts: int | str
    payload: FloorPayload


def write_lines(path: Path, count: int, seed: int = 42) -> Truth:
    """Write `count` tool calls in sessions of 5 to 120, spread over 120 days; return the truth. Deterministic."""
    rnd = random.Random(seed)
    dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
    truth = Truth(by_tool={tool: [0, 0, 0] for tool in TOOLS})
    at_ms, left, session, project = START_MS, 0, "", ""
    step_ms = 120 * 86_400_000 / max(count, 1)
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            at_ms += int(step_ms * rnd.uniform(0.5, 1.5))
            base: dict[str, Any] = {"v": 1, "app": "claude-code", "ts": at_ms}
            if left == 0:
                session, project, left = f"{rnd.getrandbits(128):032x}", rnd.choice(PROJECTS), rnd.randrange(5, 121)
                started = {
                    "session_id": session,
                    "cwd": f"/nowhere/{project}",
                    "source": "startup",
                    "model": "claude-sonnet-5",
                }
                file.write(dumps({**base, "event": "SessionStart", "payload": started}) + "\n")
                truth.sessions += 1
            left -= 1
            tool = rnd.choices(TOOLS, WEIGHTS)[0]
            ok, ms = rnd.random() > 0.07, int(rnd.lognormvariate(5, 1.5))
            payload = {
                "session_id": session, "cwd": f"/nowhere/{project}", "permission_mode": "default", "tool_name": tool,
                "tool_input": {"command": "git status"} if tool == "Bash" else {"file_path": f"/nowhere/{project}/a.py"},
                "tool_use_id": f"toolu_{n:022x}", "duration_ms": ms,
            }  # fmt: skip
            payload |= (
                {"tool_response": {"stdout": "x" * rnd.randrange(200)}}
                if ok
                else {"error": "Exit code 1", "is_interrupt": False}
            )
            file.write(
                dumps({**base, "event": "PostToolUse" if ok else "PostToolUseFailure", "payload": payload}) + "\n"
            )
            totals = truth.by_tool[tool]
            truth.events += 1
            totals[0] += 1
            totals[1] += not ok
            totals[2] += ms
    return truth


def run_tail(spool: str, state: str) -> dict[str, float]:
    """Tail everything in this process; return CPU seconds, lines and peak memory."""
    from metricsd.clock import SystemClock
    from metricsd.config import Tail as Settings
    from metricsd.store.connection import Store
    from metricsd.store.ingest import Ingest
    from metricsd.tail import Tail

    store = Store.open(Path(state) / "store.db")
    tail = Tail(Ingest(store), Path(spool), Settings(), b"k" * 32, SystemClock(), {})
    began, lines = time.process_time(), 0
    while True:
        ticked = tail.tick()
        lines += ticked.added
        if not ticked.more:
            break
    store.checkpoint()
    spent = time.process_time() - began
    store.close()
    return {"cpu_s": spent, "lines": lines, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def run_floor(spool: str, state: str) -> dict[str, float]:
    """The least that a correct loop could do: read, decode typed, insert with a unique id, commit by the megabyte."""
    decode = msgspec.json.Decoder(FloorLine).decode
    db = sqlite3.connect(Path(state) / "floor.db", isolation_level=None)
    db.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE e(id BLOB UNIQUE, at, app, event, session, tool, ms)"
    )
    began, count = time.process_time(), 0
    with (Path(spool) / "events.jsonl").open("rb") as file:
        rest = b""
        while data := file.read(1 << 20):
            *lines, rest = (rest + data).split(b"\n")
            rows = []
            for line in lines:
                d = decode(line)
                p = d.payload
                count += 1
                rows.append((count.to_bytes(16, "big"), d.ts, d.app, d.event, p.session_id, p.tool_name, p.duration_ms))
            db.execute("BEGIN")
            db.executemany("INSERT OR IGNORE INTO e VALUES (?,?,?,?,?,?,?)", rows)
            db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spent = time.process_time() - began
    db.close()
    return {"cpu_s": spent, "lines": count, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def compare(state: Path, truth: Truth) -> str:
    """Return "equal" or the first difference between the stored totals and the truth."""
    db = sqlite3.connect(state / "store.db")
    found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for tool, *values in db.execute(
        "SELECT term.text, sum(n), sum(failed), sum(duration_ms) FROM rollup JOIN term ON term.id = tool GROUP BY tool"
    ):
        found[tool] = values
    sessions = db.execute("SELECT count(*) FROM session").fetchone()[0]
    rows = db.execute("SELECT count(*) FROM event WHERE tool IS NOT NULL").fetchone()[0]
    db.close()
    if dict(found) != {tool: totals for tool, totals in truth.by_tool.items() if totals[0]}:
        return f"totals differ: {dict(found)} instead of {truth.by_tool}"
    if (rows, sessions) != (truth.events, truth.sessions):
        return f"{rows} events in {sessions} sessions instead of {truth.events} in {truth.sessions}"
    return "equal"


def in_child(function: str, spool: Path, state: Path) -> dict[str, float]:
    """Run one side in a process of its own, so that peak memory is its own."""
    code = (
        f"import json; from bench.tail import {function}; print(json.dumps({function}({str(spool)!r}, {str(state)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(lines: int) -> dict[str, Any]:
    """Measure both sides on the same file, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="metricsd-bench-") as folder:
        spool, state = Path(folder) / "spool", Path(folder) / "state"
        (spool / "new").mkdir(parents=True)
        state.mkdir()
        truth = write_lines(spool / "events.jsonl", lines)
        floor = in_child("run_floor", spool, state)
        ours = in_child("run_tail", spool, state)
        size = (state / "store.db").stat().st_size
        return {
            "lines": ours["lines"],
            "lines_per_cpu_s": round(ours["lines"] / ours["cpu_s"]),
            "floor_lines_per_cpu_s": round(floor["lines"] / floor["cpu_s"]),
            "of_floor": round(floor["cpu_s"] / ours["cpu_s"], 2),
            "rss_mb": round(ours["rss_mb"], 1),
            "bytes_per_event": round(size / ours["lines"], 1),
            "truth": compare(state, truth),
        }


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description="Tail throughput beside its floor")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.lines)
    good = (
        found["lines_per_cpu_s"] >= LINES_PER_CPU_S_MIN
        and found["rss_mb"] <= RSS_MB_MAX
        and found["bytes_per_event"] <= BYTES_PER_EVENT_MAX
        and found["truth"] == "equal"
    )
    if args.json:
        print(json.dumps({**found, "ok": good}))
    else:
        print(f"tail, {found['lines']:,} lines of a shared file")
        floor = found["floor_lines_per_cpu_s"]
        print(
            f"  lines per CPU second  {found['lines_per_cpu_s']:>9,}   (at least {LINES_PER_CPU_S_MIN:,}; bare loop {floor:,})"
        )
        print(f"  peak memory           {found['rss_mb']:>9} MB (at most {RSS_MB_MAX})")
        print(f"  database an event     {found['bytes_per_event']:>9} B  (at most {BYTES_PER_EVENT_MAX})")
        print(f"  totals                {found['truth']:>9}")
        print("  ok" if good else "  FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
