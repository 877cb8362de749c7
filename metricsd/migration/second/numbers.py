"""Which of several equal facts of a file a line is: part of the id of its event."""

from __future__ import annotations

from collections import OrderedDict

REMEMBERED_MAX = 1024


class Numbers:
    """Counts equal facts among the last REMEMBERED_MAX different ones of one file."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()

    def next(self, fact: str) -> int:
        """Return how many equal facts there were before this one."""
        count = self._seen.pop(fact, 0)
        self._seen[fact] = count + 1
        if len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return count
