"""How sure a migration may be of itself: four numbers, and one verdict that follows from them.

`reconciled`: every entry of the source is accounted for, exactly. `coverage`: rows whose canonical form was compared,
of those that should have arrived. `accuracy_lb`: a lower bound of the share of faithful rows; with full coverage it is
exact. `sensitivity_lb`: a lower bound of the share of faults that the comparison finds, from faults that were put in
on purpose. The numbers are about fidelity to the source, never about the source being right. Pure functions.
"""

from __future__ import annotations

import math

from msgspec import Struct

from metricsd.migration.model import Confidence

LEVEL = 0.99
"""One-sided level of every bound. One method (Clopper and Pearson 1934) and one level, so that figures compare."""
SENSITIVITY_MIN = 0.99
"""A check that misses more than this of what was put in proves nothing: 1,000 of 1,000 found gives 0.9954."""
PASS, FAIL = "pass", "fail"
_STEPS = 200
"""Halvings of an interval of length 1: more than a float can tell apart."""


class Evidence(Struct, frozen=True, kw_only=True):
    """What the numbers are made of.

    `expected` rows should have arrived (source without rejected), `compared` of them were compared, `unfaithful` were
    missing, doubled or different. `seeded` faults were put in, `found` of them were noticed. `failures` are reasons
    from elsewhere that no number can outweigh, such as a closed gate.
    """

    reconciled: bool
    expected: int
    compared: int
    unfaithful: int
    seeded: int
    found: int
    failures: tuple[str, ...] = ()


def judge(evidence: Evidence) -> tuple[Confidence, tuple[str, ...]]:
    """Return the numbers with their verdict, and every reason against a pass: the verdict is `fail` if there is one."""
    coverage = evidence.compared / evidence.expected if evidence.expected else 1.0
    accuracy = accuracy_lb(evidence.expected, evidence.compared, evidence.unfaithful)
    sensitivity = lower_bound(evidence.found, evidence.seeded)
    reasons = list(evidence.failures)
    if not evidence.reconciled:
        reasons.append("the counts of source and target do not reconcile")
    if evidence.unfaithful:
        reasons.append(f"{evidence.unfaithful:,} rows are missing, doubled or different")
    if coverage < 1:
        reasons.append(f"only {evidence.compared:,} of {evidence.expected:,} rows were compared")
    if sensitivity < SENSITIVITY_MIN:
        shown = f"{evidence.found:,} of {evidence.seeded:,} faults put in on purpose"
        reasons.append(
            f"the check found {shown}, which shows too little: {100 * SENSITIVITY_MIN:.0f} % must be certain"
        )
    found = Confidence(
        reconciled=evidence.reconciled,
        coverage=coverage,
        accuracy_lb=accuracy,
        sensitivity_lb=sensitivity,
        score=floor_percent(min(accuracy, sensitivity)),
        verdict=FAIL if reasons else PASS,
    )
    return found, tuple(reasons)


def accuracy_lb(expected: int, compared: int, unfaithful: int) -> float:
    """Return a lower bound of the share of faithful rows: exact where every row was compared."""
    if not expected:
        return 0.0 if unfaithful else 1.0
    if compared >= expected:
        return max(0.0, 1 - unfaithful / expected)
    return lower_bound(max(compared - unfaithful, 0), compared)


def lower_bound(successes: int, trials: int, level: float = LEVEL) -> float:
    """Return the one-sided lower bound of a proportion by Clopper and Pearson; 0 without a trial.

    It is the p at which `successes` or more of `trials` would be seen with probability 1 - level.
    """
    if trials <= 0 or successes <= 0:
        return 0.0
    if successes >= trials:
        return float((1 - level) ** (1 / trials))
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _at_least(successes, trials, middle) > 1 - level:
            high = middle
        else:
            low = middle
    return low


def floor_percent(share: float) -> float:
    """Return a share as a percentage cut to two digits: 0.99999 is 99.99, never 100."""
    # A float just below a digit must not lose it: 0.29 * 100 is 28.999999999999996.
    return math.floor(round(share * 10_000, 6)) / 100


def _at_least(successes: int, trials: int, p: float) -> float:
    """Return the probability of at least so many successes, summed from the shorter tail in logarithms."""
    if p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    if trials - successes < successes:
        return _at_most(trials - successes, trials, 1 - p)
    return 1 - _at_most(successes - 1, trials, p)


def _at_most(most: int, trials: int, p: float) -> float:
    log_p, log_q = math.log(p), math.log1p(-p)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q
        for k in range(most + 1)
    ]
    top = max(logs)
    return math.exp(top) * math.fsum(math.exp(value - top) for value in logs)
