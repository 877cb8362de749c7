"""A spool, a store and a tail between them, as one thing to drive."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from metricsd import spool
from metricsd.config import Tail as Settings
from metricsd.model import Event
from metricsd.store import quarantine, sources
from metricsd.store.connection import Store
from metricsd.store.events import read_own
from metricsd.store.ingest import Ingest
from metricsd.tail import Tail
from tests.fakes import FakeClock

KEY = b"k" * 32


class Outcome(NamedTuple):
    """What ticking until the end took in."""

    added: int
    known: int
    rejected: int
    more: bool


class Rig:
    """A home in small: `shared` appends lines, `capture` writes captures, `tick` takes in, `events` tells."""

    def __init__(self, folder: Path, clock: FakeClock, settings: Settings) -> None:
        self.folder, self.clock, self.settings = folder, clock, settings
        self.spool = folder / "spool"
        self.new = spool.ensure_spool(self.spool)
        self._open()

    def restart(self) -> None:
        """Open everything again, as a daemon does after a crash."""
        self.close()
        self._open()

    def close(self) -> None:
        """Let go of everything."""
        self.tail.close()
        self.store.close()

    def _open(self) -> None:
        self.store = Store.open(self.folder / "store.db", clock=self.clock)
        self.tail = Tail(Ingest(self.store), self.spool, self.settings, KEY, self.clock, sources.load_all(self.store))

    def tick(self) -> Outcome:
        """Tick until nothing is left."""
        total = Outcome(0, 0, 0, more=False)
        for _ in range(1000):
            done = self.tail.tick()
            total = Outcome(
                total.added + done.added, total.known + done.known, total.rejected + done.rejected, more=False
            )
            if not done.more:
                return total
        raise AssertionError("the tail never comes to an end")

    def capture(self, n: int = 0, name: str | None = None, **payload: Any) -> Path:
        """Write one complete capture with the clock's time."""
        second = self.clock.now_us() // 1_000_000
        body = {"session_id": "s", "tool_name": "Bash", "tool_use_id": f"toolu_{n:04x}", "duration_ms": n, **payload}
        line = json.dumps({"v": 1, "s": second, "app": "claude-code", "event": "PostToolUse", "payload": body}) + "\n"
        path = self.new / (name or f"PostToolUse-{n}-1-0.jsonl")
        path.write_text(line)
        os.utime(path, ns=(0, self.clock.now_us() * 1000))
        return path

    def line(self, n: int, **changes: Any) -> bytes:
        """Return one shared line (with its newline), one second after the one before."""
        payload = {"session_id": "s", "tool_name": "Read", "duration_ms": n}
        body = {
            "v": 1,
            "app": "claude-code",
            "event": "PostToolUse",
            "ts": 1_767_600_000_000 + n * 1000,
            "payload": payload,
        }
        return json.dumps(body | changes).encode() + b"\n"

    def shared(self, data: bytes, name: str = "events.jsonl") -> Path:
        """Append bytes to a shared file."""
        path = self.spool / name
        with path.open("ab") as file:
            file.write(data)
        return path

    @property
    def events(self) -> list[Event]:
        return [event for _, _, event in read_own(self.store, 0, 100_000)]

    @property
    def durations(self) -> list[int]:
        return sorted(event.duration_ms or 0 for event in self.events)

    @property
    def reasons(self) -> list[str]:
        return sorted(entry.reason for entry in quarantine.list_open(self.store))


@pytest.fixture
def rig(tmp_path: Path, clock: FakeClock) -> Iterator[Rig]:
    made = Rig(tmp_path, clock, Settings(line_bytes_max=4 * 1024 * 1024))
    yield made
    made.close()
