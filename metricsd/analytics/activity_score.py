"""The older API's productivity score, 0 to 100, from the counters that a session's own client sent.

The formula is contract 2.2 of that API: start at 50, add what was done, take away what disturbed. Corrections: a
number that is missing, null or no number counts as 0 (the original gave NaN, sent as null); the result is always
between 0 and 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from metricsd.analytics.numbers import clamp, number_of

BASE = 50
Metrics = Mapping[str, object]


def activity_score(
    productivity: Metrics | None = None, quality: Metrics | None = None, workflow: Metrics | None = None
) -> float | None:
    """Return the score; None when none of the three groups was sent."""
    if productivity is None and quality is None and workflow is None:
        return None
    score = float(BASE)
    if productivity is not None:
        score += _productivity(productivity)
    if quality is not None:
        score += _rate(quality, "tests_passed", "tests_run") + _rate(quality, "builds_successful", "builds_attempted")
    if workflow is not None:
        score += min(5.0, 2 * number_of(workflow.get("git_commits")))
        score += min(5.0, 10 * number_of(workflow.get("prs_created")))
        score -= min(10.0, number_of(workflow.get("context_switches")))
    return clamp(score, 0.0, 100.0)


def _productivity(metrics: Metrics) -> float:
    return (
        min(20.0, number_of(metrics.get("commands_executed")))
        + min(15.0, 2 * number_of(metrics.get("tools_invoked")))
        + min(10.0, 3 * number_of(metrics.get("files_modified")))
        + min(10.0, 5 * number_of(metrics.get("focus_blocks")))
        - min(15.0, 2 * number_of(metrics.get("interruptions")))
    )


def _rate(metrics: Metrics, good: str, all_of: str) -> float:
    """Return up to 10 points for a share; nothing tried counts as all good, as it did."""
    tried = number_of(metrics.get(all_of))
    share = number_of(metrics.get(good)) / tried if tried else 1.0
    return float(math.floor(10 * share + 0.5))
