"""How long a line takes from bytes to event: `python -m bench.decode [FOLDER_WITH_EVENTS_JSONL] [--json]`.

Prints microseconds of CPU a line for parsing, for the time stamp and for decoding, beside the floor of the same
run: msgspec decoding the same lines into bare typed structs, keeping everything. Without a folder it makes its own
lines. The floor does less than the decoder (no allow-list, no checks, no repository), so the ratio is the price of
those.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from metricsd.clock import SystemClock
from metricsd.decode import decode_line, parse_line
from metricsd.decode.envelope import stamp_us
from metricsd.decode.repository import Repositories

X = TypeVar("X")

LINES = 100_000
ROUNDS = 5
TARGET_US = 6.0
"""For parse and decode together, of a line of 400 bytes."""


class _FloorPayload(Struct):
    session_id: str | None = None
    cwd: str | None = None
    permission_mode: str | None = None
    tool_name: str | None = None
    tool_use_id: str | None = None
    duration_ms: int | None = None
    tool_input: Raw = Raw(b"")
    tool_response: Raw = Raw(b"")


class _FloorLine(Struct):
    v: int
    app: str
    event: str
    payload: _FloorPayload
    ts: str | None = None


def own_lines(count: int) -> list[bytes]:
    """Return lines of about 400 bytes as hooks of Claude Code write them, the same in each run."""
    rnd = random.Random(1)
    tools = [
        ("Bash", {"command": "git status --short", "run_in_background": False}),
        ("Read", {"file_path": "/home/dev/src/shop/src/total.py", "limit": 200}),
        ("Edit", {"file_path": "/home/dev/src/shop/src/total.py", "old_string": "a\n", "new_string": "b\nc\n"}),
        ("Grep", {"pattern": "def \\w+", "path": "/home/dev/src/shop"}),
    ]
    lines = []
    for number in range(count):
        tool, given = rnd.choice(tools)
        payload = {
            "session_id": f"6f1c2c1e-0000-4000-8000-{number // 60:012x}",
            "cwd": f"/home/dev/src/{rnd.choice(['shop', 'infra', 'données-été'])}",
            "permission_mode": "default",
            "hook_event_name": "PostToolUse",
            "tool_name": tool,
            "tool_input": given,
            "tool_use_id": f"toolu_{number:024x}",
            "duration_ms": rnd.randrange(5000),
            "tool_response": {"stdout": "x" * rnd.randrange(200)},
        }
        stamp = (
            f"2026-01-{1 + number % 28:02d}T{number % 24:02d}:{number % 60:02d}:{number % 59:02d}.{number % 1000:03d}Z"
        )
        line = {"v": 1, "app": "claude-code", "event": "PostToolUse", "ts": stamp, "payload": payload}
        lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode())
    return lines


def best_us(work: Callable[[X], object], items: list[X]) -> float:
    """Return the best round's CPU microseconds an item, without the loop's own."""
    return (_best_s(work, items) - _best_s(lambda _: None, items)) / len(items) * 1e6


def _best_s(work: Callable[[X], object], items: list[X]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for item in items:
            work(item)
        best = min(best, time.process_time() - started)
    return best


def read_lines(folder: Path) -> list[bytes]:
    """Return the first lines of the events in a folder."""
    return (folder / "events.jsonl").read_bytes().split(b"\n", LINES)[:LINES]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", nargs="?", type=Path, help="folder with events.jsonl")
    options.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    chosen = options.parse_args()
    figures = measure(own_lines(LINES) if chosen.folder is None else read_lines(chosen.folder))
    if chosen.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<24} {value:>12,.2f}")


def measure(lines: list[bytes]) -> dict[str, float]:
    """Return all figures for the given lines."""
    gc.freeze()
    repositories = Repositories(SystemClock())
    floor = msgspec.json.Decoder(_FloorLine).decode
    parsed = [parse_line(line) for line in lines]
    floor_us = best_us(floor, lines)
    parse_us = best_us(parse_line, lines)
    stamps_us = best_us(stamp_us, parsed)
    decode_us = best_us(lambda line: decode_line(line, 0, repositories), parsed)
    return {
        "lines": len(lines),
        "mean_bytes": sum(map(len, lines)) / len(lines),
        "floor_us": floor_us,
        "parse_us": parse_us,
        "stamp_us": stamps_us,
        "decode_us": decode_us,
        "parse_and_decode_us": parse_us + decode_us,
        "target_us": TARGET_US,
        "ratio_to_floor": (parse_us + decode_us) / floor_us,
        "lines_per_cpu_s": 1e6 / (parse_us + stamps_us + decode_us),
    }


if __name__ == "__main__":
    main()
