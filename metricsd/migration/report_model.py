"""The report of a run as it lies in `report.json`: what the page and the summary on the terminal are made of."""

from __future__ import annotations

from msgspec import Struct

from metricsd.migration.baseline import Likeness, Metric
from metricsd.migration.compare import CellDiffers, Matched, Mismatch
from metricsd.migration.model import Confidence, Counts
from metricsd.migration.sensitivity.measure import Sensitivity
from metricsd.migration.validate import Recommendation


class Count(Struct, frozen=True):
    """How often something was found. `what` says it in words, for what has any."""

    name: str
    count: int
    what: str = ""
    severity: str = ""


class Merge(Struct, frozen=True):
    """Several entries of the source that became one: where the one with the word stands, and how many told the same."""

    kind: str
    file: str
    line: int
    others: int


class Tool(Struct, frozen=True):
    """Calls of one tool as source and target count them; durations in milliseconds."""

    name: str
    source: int
    target: int
    failed: int
    median_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Stage(Struct, frozen=True):
    """Time and memory of one stage."""

    name: str
    items: int
    seconds: float
    per_s: float
    peak_rss_mb: float


class Report(Struct, frozen=True):
    """Everything about a run; fields are only added."""

    version: int
    migration_id: str
    source: str
    targets: tuple[str, ...]
    started_us: int
    ended_us: int
    ok: bool
    reasons: tuple[str, ...]
    confidence: Confidence
    quality_score: float
    quality_formula: str
    counts: Counts
    files: int
    bytes: int
    ignored: tuple[Count, ...]
    stages: tuple[Stage, ...]
    records_per_s: float
    peak_rss_mb: float
    second_reader_rss_mb: float
    rejects: tuple[Count, ...]
    findings: tuple[Count, ...]
    recommendations: tuple[Recommendation, ...]
    notes: tuple[Count, ...]
    merges: tuple[Merge, ...]
    rows: Matched
    records: Matched
    digests: dict[str, dict[str, str]]
    cells: int
    differing: tuple[CellDiffers, ...]
    mismatches: tuple[Mismatch, ...]
    days: tuple[tuple[int, int, int], ...]
    """Day since 1970 UTC, events of the source, events of the target."""
    tools: tuple[Tool, ...]
    hours: tuple[int, ...]
    baseline: tuple[Metric, ...]
    likenesses: tuple[Likeness, ...]
    comparable: bool
    sensitivity: Sensitivity
    digest: str = ""
