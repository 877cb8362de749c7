"""`python -m bench [NAME ...]`: run the benches one after the other, each with its floor from the same run."""

from __future__ import annotations

import subprocess
import sys

BENCHES = (
    "hook",
    "decode",
    "tail",
    "burst",
    "latency",
    "status",
    "report",
    "older_api",
    "sync",
    "realtime",
    "resolve",
    "rollback",
    "cloud",
    "postgres",
    "capacity",
    "idle",
    "rsyslog",
    "migration",
    "proof",
)
DEADLINE_S = 900


def main(names: list[str]) -> int:
    """Run the named benches (all without a name), each in a process of its own; return 1 if a limit was missed."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"no bench {unknown[0]!r}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    missed = []
    for name in names or BENCHES:
        done = subprocess.run([sys.executable, "-m", f"bench.{name}"], timeout=DEADLINE_S, check=False)
        if done.returncode:
            missed.append(name)
        print(flush=True)
    print(f"limits missed: {', '.join(missed)}" if missed else "every limit holds")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
