"""Bounds that rules and the second reader share: numbers alone, so that neither has to believe the other's code."""

from __future__ import annotations

FIRST_US = 1_577_836_800_000_000
"""2020-01-01 UTC: no hook of any generation is older."""
AHEAD_US = 24 * 3600 * 1_000_000
"""How far a clock may have been ahead of the run's."""
RECORD_ID_BYTES_MAX = 512
"""Longest id of a record, as on the wire."""
