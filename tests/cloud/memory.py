"""How much memory a process takes at most while something happens to it."""

from __future__ import annotations

import threading

import psutil

MIB = 1024 * 1024


class PeakMemory:
    """Watches a process's memory from a thread of ours while a block runs."""

    def __init__(self, pid: int | None = None) -> None:
        """Watch a process, by default this one."""
        self._process = psutil.Process(pid)

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def grown_mib(self) -> int:
        grown: int = self.peak - self.before
        return grown // MIB

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, self._process.memory_info().rss)
