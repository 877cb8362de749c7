"""The captures that wait, listed once and worked off from both ends.

After weeks without a daemon a hundred thousand files wait: listing them for each batch would cost more than taking
them in, and oldest first would hide what happens now for as long. So the folder is listed now and then, at a cost
bounded to a share of the time, and batches come alternately from the newest and from the oldest end. Memory is
bounded: of a longer list the middle waits in the folder.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import NamedTuple

from metricsd import spool
from metricsd.clock import Clock

NAMES_MAX = 50_000
"""Names held: about 10 MB."""
LIST_SHARE = 5
"""While a backlog is worked off, listing takes at most one part in so many of the time."""
SHORT = 2_000
"""A list this short is cheap: what is new is looked for before every batch."""
RATE_WINDOW_S = 10.0

_Entry = tuple[int, str]


class Progress(NamedTuple):
    """How a backlog stands: captures left, how many are taken in a second, and when (monotonic) the last were."""

    left: int
    per_s: float
    at: float


class Backlog:
    """The waiting captures of one spool."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._entries: deque[_Entry] = deque()
        self.progress = Progress(0, 0.0, clock.monotonic())
        """How long the backlog is, and how fast it shrinks."""
        self._newest_first = False
        self._listed_at = clock.monotonic()
        self._list_cost_s = 0.0
        self._passed: set[str] = set()
        self._taken: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def next(self, count: int) -> list[str]:
        """Return the names of up to `count` captures, from the other end than the time before; oldest first."""
        due = self._clock.monotonic() - self._listed_at >= self._list_cost_s * LIST_SHARE
        if len(self._entries) <= SHORT or due:
            self._list()
        entries = self._entries
        self._newest_first = not self._newest_first
        pop = entries.pop if self._newest_first else entries.popleft
        batch = [pop() for _ in range(min(count, len(entries)))]
        return [name for _, name in sorted(batch)]

    def pass_over(self, name: str) -> None:
        """Leave a capture in the folder until everything else has been taken in."""
        self._passed.add(name)

    def end_round(self) -> None:
        """Note that the list is worked off: what was passed over gets its next chance."""
        self._passed.clear()

    def note_taken(self, count: int) -> None:
        """Count captures that are stored and gone from the folder."""
        now = self._clock.monotonic()
        self._taken.append((now, count))
        while now - self._taken[0][0] > RATE_WINDOW_S:
            self._taken.popleft()
        spent_s = now - self._taken[0][0]
        since_first = sum(taken for _, taken in self._taken) - self._taken[0][1]
        # Replaced as a whole: another thread may read it at any moment.
        self.progress = Progress(max(self.progress.left - count, 0), since_first / spent_s if spent_s > 0 else 0.0, now)

    def _list(self) -> None:
        """Read the folder; on failure keep what is known, the next round tries again."""
        began = self._clock.monotonic()
        found: list[_Entry] = []
        total = 0
        try:
            for capture in spool.scan_captures(self._folder):
                total += 1
                if capture.name not in self._passed:
                    found.append((capture.mtime_ns, capture.name))
                if len(found) >= 2 * NAMES_MAX:
                    found = _ends(found)
        except OSError:
            # No permission or no descriptors left: `status` says so; shared files go on.
            return
        finally:
            self._listed_at = self._clock.monotonic()
            self._list_cost_s = self._listed_at - began
        self._entries = deque(_ends(found))
        self.progress = self.progress._replace(left=total)


def _ends(entries: list[_Entry]) -> list[_Entry]:
    """Return the entries in order, without the middle if there are too many."""
    entries.sort()
    if len(entries) <= NAMES_MAX:
        return entries
    return entries[: NAMES_MAX // 2] + entries[-NAMES_MAX // 2 :]
