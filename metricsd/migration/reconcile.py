"""Whether the counts of a run, of the second reader and of the target tell one story, exactly. Pure.

Counts that merely add up prove little: a reader that never saw a line has nothing missing. So what was read is compared
with what the second reader read, and what was loaded with what the target holds.
"""

from __future__ import annotations

from metricsd.migration.compare import Comparison
from metricsd.migration.model import Counts
from metricsd.migration.second.reader import Reading


def differences(counts: Counts, reading: Reading, found: Comparison, *, excluded: int) -> list[str]:
    """Return every sum that does not come out, as sentences.

    `excluded` entries were left out by the run for reasons that the second reader cannot know, and count as rejected.
    """
    total = counts.total
    entries = (
        reading.calls + reading.announced + reading.notes + reading.figures + reading.others + sum(reading.bad.values())
    )
    rejected = sum(reading.bad.values()) + sum(reading.refused.values()) + excluded
    pairs = [
        ("entries of the source", total.source, "read by the second reader", entries),
        ("entries with a fate", total.loaded + total.merged + total.rejected + total.skipped, "of the source", total.source),
        ("rejected entries", total.rejected, "that the second reader rejects", rejected),
    ]  # fmt: skip
    if not reading.others:
        # What an export brings may be records that say nothing of this run.
        pairs.append(("calls loaded", counts.tool_events.loaded, "that the target got of this run", found.calls_ours))
    return [f"{one:,} {what}, {other:,} {which}" for what, one, which, other in pairs if one != other]
