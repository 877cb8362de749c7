"""How many bytes of requests one process holds at once.

Limits per request alone do not bound a process: a hundred allowed bodies at the same moment are gigabytes. Each
request takes what it holds from one budget and gives it back when it is answered; when nothing is left, it is told to
come back in a moment.
"""

from __future__ import annotations

import threading

from metricsd.cloud.problems import busy

IN_FLIGHT_BYTES_MAX = 128 * 1024 * 1024


class Budget:
    """The bytes that are left for all requests together. Bodies are inflated in threads, so a lock guards it."""

    def __init__(self, limit: int = IN_FLIGHT_BYTES_MAX) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Count `size` more bytes as held; False when they do not fit."""
        with self._lock:
            fits = self.used + size <= self.limit
            self.used += size if fits else 0
            return fits

    def give(self, size: int) -> None:
        """Take `size` bytes off again."""
        with self._lock:
            self.used -= size

    def share(self) -> Share:
        """Return one request's part; use it as a context, which gives everything back."""
        return Share(self)


class Share:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0

    def take(self, size: int) -> None:
        """Count `size` bytes as held; raise 503 when they do not fit."""
        if not self._budget.take(size):
            raise busy("this process holds too many requests now", "in_flight_bytes_max")
        self._taken += size

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give(self._taken)
        self._taken = 0
