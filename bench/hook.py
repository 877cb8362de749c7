"""Measures the capture hook as a whole process, beside `/bin/true` in the same run.

Prints the medians of interleaved runs at 2 KB, 64 KB and 1 MB, their ratio to the floor, the peak memory of the
hook's processes, and whether the limits hold. A small C-like spawner is not needed: each child is timed with
posix_spawn and wait4, and memory comes from a small process in between that is itself smaller than what it measures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
CAPTURE = REPOSITORY / "hooks" / "capture"
FLOOR = "/bin/true"
GNU_TIME = "/usr/bin/time"
RSS_KIB_MAX = 3 * 1024
PIPE_BYTES = 1024 * 1024  # what Linux lets anyone ask for


SPAWNER_C = """
#include <spawn.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
extern char **environ;
int main(int argc, char **argv) {
    pid_t child;
    int status;
    struct rusage usage;
    if (argc < 2 || posix_spawn(&child, argv[1], 0, 0, argv + 1, environ)) return 1;
    if (wait4(child, &status, 0, &usage) != child) return 1;
    fprintf(stderr, "%ld\\n", usage.ru_maxrss);
    return 0;
}
"""


class Case(NamedTuple):
    """A payload size and how many times `/bin/true` the hook may take with it."""

    name: str
    payload_bytes: int
    ratio_max: float


CASES = (Case("2 KB", 2 * 1024, 4.0), Case("64 KB", 64 * 1024, 4.0), Case("1 MB", 1000 * 1000, 10.0))


def make_payload(size: int) -> bytes:
    """Return a PostToolUse payload of about `size` bytes whose bulk is source code, as of a file that was read."""
    source = Path(__file__).read_text("utf-8")
    head = {"session_id": "7c1e4f0a", "hook_event_name": "PostToolUse", "tool_name": "Read", "duration_ms": 12}
    text = json.dumps({**head, "tool_response": {"content": source * (size // len(source) + 1)}})
    spare = len(text) - size
    escaped = json.dumps(source * (size // len(source) + 1))[1:-1]
    body = escaped[: len(escaped) - spare].rstrip("\\")
    return (json.dumps(head)[:-1] + ', "tool_response": {"content": "' + body + '"}}').encode()


def time_once(command: list[str], payload: bytes) -> float:
    """Return the seconds from spawn to exit, with stdin a pipe that already holds the payload."""
    reading, writing = os.pipe()
    _enlarge(writing)
    os.write(writing, payload)
    os.close(writing)
    sink = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_DUP2, sink, 1), (os.POSIX_SPAWN_DUP2, sink, 2)]
    begin = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    os.waitpid(child, 0)
    took = time.perf_counter() - begin
    os.close(reading)
    os.close(sink)
    return took


def measure(case: Case, spool: Path, rounds: int) -> dict[str, Any]:
    """Return the medians of one size, floor and hook by turns."""
    payload = make_payload(case.payload_bytes)
    command = [str(CAPTURE), "claude-code", "PostToolUse", str(spool)]
    floors: list[float] = []
    hooks: list[float] = []
    for number in range(rounds):
        floors.append(time_once([FLOOR], payload))
        hooks.append(time_once(command, payload))
        if number % 20 == 19:
            shutil.rmtree(spool / "new")
            (spool / "new").mkdir(mode=0o700)
    floor, hook = statistics.median(floors), statistics.median(hooks)
    return {
        "case": case.name,
        "payload_bytes": len(payload),
        "floor_ms": floor * 1000,
        "hook_ms": hook * 1000,
        "hook_p95_ms": statistics.quantiles(hooks, n=20)[-1] * 1000,
        "ratio": hook / floor,
        "ratio_max": case.ratio_max,
        "ok": hook / floor <= case.ratio_max,
    }


def measure_rss_kib(spool: Path, folder: Path) -> int | None:
    """Return the peak memory of the hook's largest process at 64 KB, or None without a C compiler or GNU time.

    The kernel counts what a process was before exec too, and that would be this Python: a small program stands
    between, which waits for the hook with wait4.
    """
    spawner = _small_spawner(folder)
    if spawner is None:
        return None
    payload = folder / "payload.json"
    payload.write_bytes(make_payload(64 * 1024))
    command = [*spawner, str(CAPTURE), "claude-code", "PostToolUse", str(spool)]
    with payload.open("rb") as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=True, timeout=30)
    return int(done.stderr.split()[-1])


def run(rounds: int) -> dict[str, Any]:
    """Return all measurements and whether every limit holds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool = folder / "spool"
        (spool / "new").mkdir(parents=True, mode=0o700)
        rows = [measure(case, spool, rounds) for case in CASES]
        rss_kib = measure_rss_kib(spool, folder)
    held = rss_kib is None or rss_kib <= RSS_KIB_MAX
    return {
        "shell": os.path.realpath("/bin/sh"),
        "awk": shutil.which("mawk") or os.path.realpath(shutil.which("awk") or "none"),
        "rows": rows,
        "rss_kib": rss_kib,
        "rss_kib_max": RSS_KIB_MAX,
        "ok": held and all(row["ok"] for row in rows),
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print(f"shell {found['shell']}, awk {found['awk']}; medians of whole processes, stdin filled before the start")
    print(f"{'payload':>8} {'/bin/true':>10} {'hook':>9} {'p95':>9} {'ratio':>7} {'limit':>7}")
    for row in found["rows"]:
        print(
            f"{row['case']:>8} {row['floor_ms']:>7.2f} ms {row['hook_ms']:>6.2f} ms {row['hook_p95_ms']:>6.2f} ms "
            f"{row['ratio']:>6.1f}x {row['ratio_max']:>6.1f}x  {'pass' if row['ok'] else 'FAIL'}"
        )
    if found["rss_kib"] is None:
        print("   memory  not measured: neither a C compiler nor GNU time is here")
        return
    verdict = "pass" if found["rss_kib"] <= found["rss_kib_max"] else "FAIL"
    print(
        f"   memory  {found['rss_kib'] / 1024:.1f} MiB at 64 KB, limit {found['rss_kib_max'] / 1024:.0f} MiB  {verdict}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="runs of each command and size")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    found = run(options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return 0 if found["ok"] else 1


def _small_spawner(folder: Path) -> list[str] | None:
    """Return a command prefix that runs a program and prints its peak memory in KiB on stderr."""
    compiler = shutil.which("cc")
    if compiler is not None:
        source, program = folder / "spawn.c", folder / "spawn"
        source.write_text(SPAWNER_C)
        subprocess.run([compiler, "-O1", "-o", str(program), str(source)], check=True, timeout=60)
        return [str(program)]
    # GNU time; the one of macOS has other options and ends with an error here.
    return [GNU_TIME, "-f", "%M"] if sys.platform == "linux" and Path(GNU_TIME).exists() else None


def _enlarge(pipe: int) -> None:
    """Make a pipe hold a whole payload. Only Linux can; elsewhere a large payload would block the measurement."""
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


if __name__ == "__main__":
    sys.exit(main())
