"""How a migration tells how far it is: a bar on a terminal, JSON lines with `--json`, nothing on a pipe.

Bytes are known up front, so the bar and the time that is left follow from them; the rate is that of the last half
minute, because sessions and lines cost differently.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from metricsd.migration.runner import Told

TELL_EVERY_S = 0.5
WINDOW_S = 30.0
_NAMES = {"survey": "looking at the source", "load": "loading", "compare": "reading it back"}


class Rate:
    """What was done a second, over the last half minute."""

    def __init__(self, now: float) -> None:
        self._points: deque[tuple[float, int]] = deque([(now, 0)])

    def per_s(self, now: float, done: int) -> float:
        """Note how much is done now and return the rate."""
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[0][0] > WINDOW_S:
            self._points.popleft()
        began, before = self._points[0]
        return max(done - before, 0) / (now - began) if now > began else 0.0


class Teller:
    """Tells about one run. Use as a context manager."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self._told_at = 0.0
        self._stage = ""
        self._bytes = Rate(self._began)
        self._entries = Rate(self._began)

    def __enter__(self) -> Teller:
        if not self._as_json and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()

    def pause(self) -> None:
        """Take the bar away, for a question or the end."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def tell(self, told: Told) -> None:
        """Show how far the run is, at most twice a second."""
        now = time.monotonic()
        if told.stage != self._stage:
            self._stage, self._told_at = told.stage, 0.0
            self._bytes, self._entries = Rate(now), Rate(now)
        if now - self._told_at < TELL_EVERY_S:
            return
        self._told_at = now
        byte_rate, rate = self._bytes.per_s(now, told.bytes_done), self._entries.per_s(now, told.entries)
        left = (told.bytes_total - told.bytes_done) / byte_rate if byte_rate and told.bytes_total else None
        if self._as_json:
            click.echo(json.dumps(_line(told, rate, left, now - self._began)))
        elif self._bar is not None:
            self._show(self._bar, told, rate)

    def _show(self, bar: Progress, told: Told, rate: float) -> None:
        name = _NAMES.get(told.stage, told.stage)
        total = told.bytes_total or None
        if self._task is None:
            self._task = bar.add_task(name, total=total, rate="")
        shown = f"{rate:,.0f}/s" if rate else ""
        bar.update(self._task, description=name, completed=told.bytes_done, total=total, rate=shown)


def _line(told: Told, rate: float, left: float | None, elapsed_s: float) -> dict[str, Any]:
    return {
        "stage": told.stage,
        "bytes_done": told.bytes_done,
        "bytes_total": told.bytes_total,
        "entries": told.entries,
        "rejected": told.rejected,
        "per_s": round(rate, 1),
        "left_s": None if left is None else round(left, 1),
        "elapsed_s": round(elapsed_s, 1),
    }


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
