"""Plays histories again by their seeds: `python -m tests.sim.replay SEED...`, or `--from N --count M` to look for more.

A seed that fails is printed with what did not hold; exit 1. `--bug NAME` plays it with a seeded bug.
"""

from __future__ import annotations

import argparse
import sys

from tests.sim.bugs import BUGS, SOUND
from tests.sim.history import play


def main(arguments: list[str] | None = None) -> int:
    """Play and judge; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.replay", description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--bug", choices=[bug.name for bug in BUGS])
    options = parser.parse_args(arguments)
    bug = next((bug for bug in BUGS if bug.name == options.bug), SOUND)
    failed = 0
    for seed in (*options.seeds, *range(options.first, options.first + options.count)):
        violation = play(seed, bug)
        if violation is not None:
            failed += 1
            print(f"{seed}: {violation}")
    if not failed:
        print("every invariant held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
