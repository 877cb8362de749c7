"""Which of several equal facts of a file a line is: part of the id of its event, so the rule is part of the format.

Facts are remembered by their CRC-32, the 1024 that were seen last. Two facts with one checksum count on together; that
is as much a part of the rule as the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from zlib import crc32

REMEMBERED_MAX = 1024


class Numbers:
    """Counts equal facts among the last REMEMBERED_MAX different ones of one file."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, int] = OrderedDict()

    def next(self, fact: str) -> int:
        """Return how many equal facts there were before this one."""
        mark = crc32(fact.encode("utf-8", "surrogatepass"))
        count = self._seen.get(mark, 0)
        self._seen[mark] = count + 1
        self._seen.move_to_end(mark)
        if len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return count
