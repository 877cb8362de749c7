"""What a side of a comparison looks like in figures: calls by tool, durations, projects, hours, scores, people.

Both sides keep these while they are read, in bounded memory whatever the data: names beyond a limit are counted
together. Figures say how alike two sides are; whether they are equal is told by digests alone.
"""

from __future__ import annotations

from zlib import crc32

import msgspec

from metricsd.totals import NO_DURATION, bucket_of

NAMES_MAX = 500
PEOPLE_MAX = 10_000
OTHERS = "(others)"
HOURS = 24
_US_PER_HOUR = 3_600_000_000
_US_PER_MS = 1000


class OfTool(msgspec.Struct):
    """Calls of one tool; `buckets` counts them by the log-linear bucket of their duration (totals.py)."""

    calls: int = 0
    failed: int = 0
    duration_ms: int = 0
    buckets: dict[int, int] = msgspec.field(default_factory=dict)


class Figures(msgspec.Struct):
    """The figures of one side. `people` are checksums of who there was, never names."""

    tools: dict[str, OfTool] = msgspec.field(default_factory=dict)
    projects: dict[str, int] = msgspec.field(default_factory=dict)
    hours: list[int] = msgspec.field(default_factory=lambda: [0] * HOURS)
    sessions: int = 0
    ended: int = 0
    session_ms: int = 0
    scored: int = 0
    score: float = 0.0
    people: set[int] = msgspec.field(default_factory=set)
    first_us: int | None = None
    last_us: int | None = None

    def call(self, tool: str, failed: bool, duration_ms: int | None) -> None:
        """Count a call."""
        found = self.tools.get(tool)
        if found is None:
            found = self._tool(tool)
        found.calls += 1
        found.failed += failed
        if duration_ms is None:
            bucket = NO_DURATION
        else:
            bucket = bucket_of(duration_ms)
            found.duration_ms += duration_ms
        found.buckets[bucket] = found.buckets.get(bucket, 0) + 1

    def session(
        self, start: int | None, end: int | None, user: str | None, score: float | None, project: str | None
    ) -> None:
        """Count a session."""
        self.sessions += 1
        name = project or ""
        if name not in self.projects and len(self.projects) >= NAMES_MAX:
            name = OTHERS
        self.projects[name] = self.projects.get(name, 0) + 1
        if start is not None:
            self.hours[start // _US_PER_HOUR % HOURS] += 1
            self.first_us = start if self.first_us is None else min(self.first_us, start)
            self.last_us = start if self.last_us is None else max(self.last_us, start)
            if end is not None:
                self.ended += 1
                self.session_ms += (end - start) // _US_PER_MS
        if score is not None:
            self.scored += 1
            self.score += score
        if user is not None and len(self.people) < PEOPLE_MAX:
            self.people.add(crc32(user.encode("utf-8", "surrogatepass")))

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(tool.calls for tool in self.tools.values())

    @property
    def failed(self) -> int:
        """All calls that failed."""
        return sum(tool.failed for tool in self.tools.values())

    def buckets(self) -> dict[int, int]:
        """Return the durations of all tools by bucket."""
        found: dict[int, int] = {}
        for tool in self.tools.values():
            for bucket, count in tool.buckets.items():
                found[bucket] = found.get(bucket, 0) + count
        return found

    def _tool(self, tool: str) -> OfTool:
        name = tool if len(self.tools) < NAMES_MAX else OTHERS
        return self.tools.setdefault(name, OfTool())
