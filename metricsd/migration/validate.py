"""Looks at every row of a run by the rules, keeps count in a few hundred bytes, and says what to make of it.

`Validator` is the runner's `Validation`. What it must remember from part to part is one small struct, which rides in
the checkpoint, so a run that was cut off ends with the findings of one that was not. Gates, score and recommendations
are pure functions of counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec
from msgspec import Struct

from metricsd.decode.older_hooks import AGENT_LINE, AddedUp, SessionNote, ToolCall
from metricsd.migration.confidence import floor_percent
from metricsd.migration.custom_rules import CustomRules
from metricsd.migration.model import Counts, Finding, Planned, Severity
from metricsd.migration.rules import BY_ID, Rule, rule_of
from metricsd.migration.rules_calls import CallRules, FindSession, add
from metricsd.migration.rules_sessions import check_event, check_metric, check_session

PAUSE_SHARE = 0.01
STOP_SHARE = 0.05
GATE_ENTRIES_MIN = 1000
"""While a run goes on its gates wait for so many entries: one bad line of the first ten says nothing."""
NO_DURATION_SHARE = 0.02
FAILED_SHARE = 0.5
NO_SESSION_SHARE = 0.1
OTHER_TOOLS_SHARE = 0.05
SCORE_LOW, SCORE_HIGH = 10, 90
SPAN_US_MAX = 10 * 366 * 86_400 * 1_000_000
FLAGGED_WEIGHT = 0.5
"""What a row with a soft finding costs the quality score, where a rejected one costs 1."""
_OTHER = "other"


class Gate(StrEnum):
    """What the share of rejected entries asks for."""

    OPEN = "open"
    PAUSE = "pause"
    STOP = "stop"


class Running(Struct):
    """What has been seen so far. `by_rule` counts findings; `flagged` rows that are kept and have a soft one."""

    rows: int = 0
    flagged: int = 0
    hard: int = 0
    by_rule: dict[str, int] = msgspec.field(default_factory=dict)
    calls: int = 0
    failed: int = 0
    without_duration: int = 0
    without_session: int = 0
    other_tools: int = 0
    sessions: int = 0
    scored: int = 0
    score: float = 0.0
    first_us: int | None = None
    last_us: int | None = None
    last_call: tuple[str | None, int] = (None, 0)


class Recommendation(Struct, frozen=True):
    """What to do about a rule's findings."""

    rule: str
    severity: Severity
    count: int
    what: str
    why: str
    fix: str


class Validator:
    """The rules of one run."""

    def __init__(
        self, now_us: int, *, find_session: FindSession | None = None, custom: Sequence[CustomRules] = ()
    ) -> None:
        """`now_us` is the run's start: what is told to be in the future does not change when a run is resumed."""
        self._now_us = now_us
        self._custom = custom
        self._calls = CallRules(now_us, find_session)
        self.running = Running()

    def check(self, part: Sequence[Planned]) -> list[Finding]:
        """Return what the rules say of these rows, in their order; rules of one's own last."""
        found: list[Finding] = []
        running, calls, now_us = self.running, self._calls, self._now_us
        for planned in part:
            fact = planned.row.found
            if isinstance(fact, ToolCall):
                calls.check(planned, fact, found)
                self._count_call(planned)
            elif isinstance(fact, SessionNote):
                check_session(planned, fact, now_us, found)
                self._count_session(fact)
            elif isinstance(fact, AddedUp):
                check_metric(planned, fact, found)
            elif planned.items:
                check_event(planned, planned.items[0].event, now_us, found)
            elif fact is None and planned.row.raw.get("event_type") == AGENT_LINE:
                add(found, "announcement_has_call", planned.row.place, "", "no call behind it")
        running.rows += len(part)
        running.last_call = calls.last
        for custom in self._custom:
            found += custom.check(part)
        if found:
            self._count_findings(found)
        return found

    def finish(self, counts: Counts) -> list[Finding]:
        """Return what the rules say of the whole set."""
        seen, total = self.running, counts.total
        found: list[Finding] = []
        if not counts.reconciles:
            add(found, "counts_reconcile", None, "", "entries without a fate")
        gate = gate_of(total.rejected, total.source, accepted=False)
        if gate is not Gate.OPEN:
            rule = "rejects_within_stop" if gate is Gate.STOP else "rejects_within_pause"
            add(found, rule, None, "", percent(total.rejected, total.source))
        for rule, count, share in (
            ("durations_are_there", seen.without_duration, NO_DURATION_SHARE),
            ("failures_are_few", seen.failed, FAILED_SHARE),
            ("calls_have_sessions", seen.without_session, NO_SESSION_SHARE),
            ("tools_are_known", seen.other_tools, OTHER_TOOLS_SHARE),
        ):
            if count > share * seen.calls:
                add(found, rule, None, "", percent(count, seen.calls))
        if seen.scored and not SCORE_LOW <= seen.score / seen.scored <= SCORE_HIGH:
            add(found, "scores_are_spread", None, "productivity_score", f"mean {seen.score / seen.scored:.0f}")
        if seen.first_us is not None and seen.last_us is not None and seen.last_us - seen.first_us > SPAN_US_MAX:
            add(found, "years_are_few", None, "timestamp", "more than 10 years")
        self._count_findings(found)
        return found

    def snapshot(self) -> bytes:
        """Return what has been seen so far."""
        return msgspec.msgpack.encode(self.running)

    def restore(self, kept: bytes) -> None:
        """Go on from a snapshot; nothing for an empty one."""
        if kept:
            self.running = msgspec.msgpack.decode(kept, type=Running)
            self._calls.last = self.running.last_call

    def rules(self) -> dict[str, Rule]:
        """Return every rule of this run, also those of one's own."""
        found = dict(BY_ID)
        for custom in self._custom:
            found.update(custom.rules)
        return found

    def _count_findings(self, found: Sequence[Finding]) -> None:
        running = self.running
        hard = {finding.place for finding in found if finding.severity is Severity.HARD}
        soft = {finding.place for finding in found if finding.severity is Severity.SOFT}
        running.hard += len(hard - {None})
        running.flagged += len(soft - hard - {None})
        for finding in found:
            running.by_rule[finding.rule] = running.by_rule.get(finding.rule, 0) + 1

    def _count_call(self, planned: Planned) -> None:
        running, event = self.running, planned.items[0].event
        running.calls += 1
        if event.outcome != "ok":
            running.failed += 1
        if event.duration_ms is None:
            running.without_duration += 1
        if event.session is None or event.session in ("default-session", "default"):
            running.without_session += 1
        if event.tool == _OTHER:
            running.other_tools += 1
        at = event.at
        if running.first_us is None or running.last_us is None:
            running.first_us = running.last_us = at
        elif at > running.last_us:
            running.last_us = at
        elif at < running.first_us:
            running.first_us = at

    def _count_session(self, note: SessionNote) -> None:
        self.running.sessions += 1
        if note.score is not None:
            self.running.scored += 1
            self.running.score += note.score


def gate_of(rejected: int, source: int, *, accepted: bool, going_on: bool = False) -> Gate:
    """Return what the rejected entries ask for: over 1 % a pause, unless somebody accepted them; over 5 % the end.

    `going_on` says that the run has not read everything yet: then nothing is decided on few entries.
    """
    if not source or (going_on and source < GATE_ENTRIES_MIN):
        return Gate.OPEN
    if rejected > STOP_SHARE * source:
        return Gate.STOP
    return Gate.PAUSE if rejected > PAUSE_SHARE * source and not accepted else Gate.OPEN


def quality_score(source: int, rejected: int, flagged: int) -> float:
    """Return 100 x (1 - (rejected + flagged / 2) / source), cut to two digits; 100 for an empty source.

    `flagged` are kept rows with a soft finding. The score is about the source; how faithfully it was brought in is
    another question, which the confidence answers.
    """
    if source <= 0:
        return 100.0
    return floor_percent(max(0.0, 1 - (rejected + FLAGGED_WEIGHT * flagged) / source))


def recommend(
    by_rule: Mapping[str, int], rejects: Mapping[str, int], known: Mapping[str, Rule] | None = None
) -> list[Recommendation]:
    """Return what to do, the worst and most frequent first: of findings by rule, and of rejected entries by reason."""
    counts: dict[str, int] = dict(by_rule)
    for reason, count in rejects.items():
        rule = rule_of(reason)
        if rule is not None:
            counts[rule.id] = max(counts.get(rule.id, 0), count)
    rules = BY_ID if known is None else known
    found = [
        Recommendation(rule.id, rule.severity, count, rule.what, rule.why, rule.fix)
        for rule, count in _known(rules, counts.items())
        if rule.severity is not Severity.INFO and count
    ]
    return sorted(found, key=lambda one: (one.severity is not Severity.HARD, -one.count, one.rule))


def percent(part: int, whole: int) -> str:
    """Return a share for a finding: `12.5 %`."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def _known(rules: Mapping[str, Rule], counts: Iterable[tuple[str, int]]) -> Iterable[tuple[Rule, int]]:
    return ((rules[rule], count) for rule, count in counts if rule in rules)
