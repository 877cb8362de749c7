"""The catalogue of what a migration looks at: every rule with its severity, and what it is for in words.

Rules on shape are kept by the parse, which rejects an entry with a reason; the others look at what was read (rules on
a call, a session, an added-up figure, an event) or at the whole set. A hard rule rejects its entry, or fails the run
where it is about the whole set; a soft one reports. docs/migration-rules.md is this table, held to it by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from msgspec import Struct

from metricsd.migration.model import Severity

HARD, SOFT, INFO = Severity.HARD, Severity.SOFT, Severity.INFO


class Scope(StrEnum):
    """What a rule looks at."""

    ENTRY = "entry"
    """The bytes of an entry, before anything is known of it; kept by the parse."""
    CALL = "call"
    SESSION = "session"
    METRIC = "metric"
    """Calls that arrived added up."""
    EVENT = "event"
    """An event of a transcript or an export."""
    SET = "set"


class Kind(StrEnum):
    """Whether a rule is about data (can this value be?) or about business (does this make sense?)."""

    DATA = "data"
    BUSINESS = "business"


class Rule(Struct, frozen=True):
    """One rule. `reasons` are the parse's codes that mean it (reasons.py)."""

    id: str
    scope: Scope
    kind: Kind
    severity: Severity
    what: str
    why: str
    fix: str
    reasons: tuple[str, ...] = ()


def _data(rule_id: str, scope: Scope, severity: Severity, what: str, why: str, fix: str, *reasons: str) -> Rule:
    return Rule(rule_id, scope, Kind.DATA, severity, what, why, fix, reasons)


def _business(rule_id: str, scope: Scope, severity: Severity, what: str, why: str, fix: str) -> Rule:
    return Rule(rule_id, scope, Kind.BUSINESS, severity, what, why, fix)


_RETRY = "repair the line in the source and run again: what is there already is not doubled"
_NOTHING = "nothing: it is kept as it is"
_CLOCK = "find out which machine's clock was wrong; correct the times in a copy of the source and run that"

RULES: tuple[Rule, ...] = (
    # Shape of an entry.
    _data("text_is_utf8", Scope.ENTRY, HARD, "the bytes are UTF-8", "other bytes are torn, or in another encoding",
          "convert the file to UTF-8 and run again", "bad_utf8"),
    _data("entry_is_json", Scope.ENTRY, HARD, "a line or document is one JSON object", "anything else says nothing",
          _RETRY, "bad_json"),
    _data("entry_is_shallow", Scope.ENTRY, HARD, "objects are not nested too deep", "no hook writes such",
          "remove the line if it is not the hooks'", "too_deep"),
    _data("entry_is_short", Scope.ENTRY, HARD, "a line has at most 16 MiB, a document 64 MiB", "memory is bounded",
          "remove the line, or split the array", "too_long"),
    _data("entry_has_no_nul", Scope.ENTRY, HARD, "no NUL byte inside", "the file was cut or copied while it was written",
          _RETRY, "nul"),
    _data("entry_is_whole", Scope.ENTRY, HARD, "the last line is whole", "its writer died", _RETRY, "incomplete"),
    _data("entry_is_known", Scope.ENTRY, HARD, "an entry is a call, a session, or a figure, with what each must have",
          "without a tool, a session or a time it is no fact", _RETRY, "bad_fields"),
    _data("time_is_readable", Scope.ENTRY, HARD, "times are RFC 3339, from 1970 to 2286", "an event's id is made of it",
          _RETRY, "bad_time"),
    _data("file_is_readable", Scope.ENTRY, HARD, "a file can be read to its end", "permissions, or a torn gzip",
          "repair the file or its permissions and run again", "unreadable"),
    # Times.
    _data("time_too_early", Scope.CALL, HARD, "no time before 2020", "no hook is older: a clock was not set", _CLOCK),
    _data("time_in_future", Scope.CALL, HARD, "no time more than 24 h ahead of the run", "a clock was ahead", _CLOCK),
    _data("time_without_zone", Scope.CALL, SOFT, "a time has an offset or is UTC", "without one it is taken as UTC",
          "if the machine was not in UTC, write the offset into a copy of the source"),
    # Calls.
    _data("unknown_field", Scope.CALL, INFO, "the fields of a call are known ones", "an unknown one is not kept",
          _NOTHING),
    _data("outcome_is_flag", Scope.CALL, SOFT, "`success` is true or false", "anything but false counts as success",
          _NOTHING),
    _data("duration_is_number", Scope.CALL, SOFT, "`execution_time_ms` is a number", "the call is kept without a duration",
          _RETRY),
    _data("duration_is_whole", Scope.CALL, INFO, "`execution_time_ms` is a whole number", "a fraction is rounded", _NOTHING),
    _data("duration_not_negative", Scope.CALL, SOFT, "no negative duration", "the call is kept without a duration", _CLOCK),
    _data("duration_within_day", Scope.CALL, SOFT, "no call takes more than 24 h", "it is a wrong unit more often than a call",
          "look whether the writer meant microseconds"),
    _data("tool_is_name", Scope.CALL, SOFT, "a tool's name is an identifier of at most 200 characters",
          "any other name is kept as `other`", "name the tool by letters, digits and . _ : -"),
    _data("agent_is_name", Scope.CALL, SOFT, "an agent's name is an identifier", "any other is kept as `other`",
          "name the agent by letters, digits and . _ : -"),
    _data("session_is_id", Scope.CALL, SOFT, "a session's id looks like an id", "any other is kept as its hash", _NOTHING),
    _data("own_id_is_made", Scope.CALL, INFO, "`enhanced_activity.id` looks like one that the hooks make",
          "equal ones are one call", "look whether another writer makes up ids, and that they differ"),
    _data("size_is_number", Scope.CALL, SOFT, "sizes and counts are whole numbers from 0", "any other is not kept", _RETRY),
    _data("size_within_cap", Scope.CALL, SOFT, "no file above 10 GiB, no edit above 1,000,000 lines", "a wrong unit", _RETRY),
    _data("no_secret_in_call", Scope.CALL, INFO, "no token stands in the line", "it is never kept",
          "the source still holds it: revoke the token, remove the source when you are done"),
    _data("user_is_named", Scope.CALL, INFO, "a call says whose it was", "without it a call cannot be given to its session",
          _NOTHING),
    _data("call_has_session", Scope.CALL, SOFT, "a call belongs to a session that the source tells of (foreign key)",
          "reports by session leave it out", "bring the folder with that session's files in as well"),
    _data("fact_is_single", Scope.CALL, SOFT, "no more than 20 equal calls in one second", "a writer in a loop doubles lines",
          "look at the lines named; delete repeats in a copy of the source"),
    _business("failure_is_consistent", Scope.CALL, SOFT, "`success`, `error` and `error_message` agree",
              "a call that says both counts as failed", _NOTHING),
    _business("lines_add_up", Scope.CALL, SOFT, "net_lines is lines_added less lines_removed", "one of them is wrong", _NOTHING),
    _business("activity_agrees", Scope.CALL, SOFT, "`enhanced_activity` says the same outcome and duration as its line",
              "the line's own are kept", _NOTHING),
    _business("agent_is_named", Scope.CALL, SOFT, "a Task says which agent", "reports by agent leave it out", _NOTHING),
    _business("announcement_has_call", Scope.CALL, SOFT, "an agent's announcement is followed by its call",
              "the call was lost; the announcement is not counted", _NOTHING),
    _business("call_in_session_span", Scope.CALL, SOFT, "a call lies inside its session, give or take 5 min",
              "one of the clocks or ids is wrong", _CLOCK),
    _business("calls_in_order", Scope.CALL, SOFT, "times of a session's calls do not fall by more than 5 min",
              "files were joined in the wrong order, or a clock was set back", _NOTHING),
    # Sessions.
    _data("end_before_start", Scope.SESSION, HARD, "a session does not end before it starts", "its times are wrong", _CLOCK),
    _data("session_id_too_long", Scope.SESSION, HARD, "the id of a session's record has at most 512 bytes",
          "it cannot be stored or sent", "shorten the id in all files of the session"),
    _data("score_in_range", Scope.SESSION, SOFT, "a score is from 0 to 10 (0 to 100 in the older API)",
          "it is brought to the nearer bound", _NOTHING),
    _data("counter_not_negative", Scope.SESSION, SOFT, "counters of a session are not negative", "kept as they are", _NOTHING),
    _data("counter_is_number", Scope.SESSION, SOFT, "counters are numbers, not null", "a fault of the hooks wrote NaN as null",
          _NOTHING),
    _data("success_rate_in_range", Scope.SESSION, SOFT, "a success rate is from 0 to 100 percent", "kept as it is", _NOTHING),
    _data("session_user_is_named", Scope.SESSION, INFO, "a session says whose it was", "it gets no person", _NOTHING),
    _data("session_has_folder", Scope.SESSION, INFO, "a session says in which folder it ran", "it gets no project", _NOTHING),
    _business("session_within_day", Scope.SESSION, SOFT, "no session is longer than 24 h", "its end was noted late", _NOTHING),
    _business("session_longer_than_second", Scope.SESSION, INFO, "a session takes a second or more",
              "it was opened and closed by a script", _NOTHING),
    _business("session_has_end", Scope.SESSION, INFO, "a session has an end", "its tool was killed; no end is made up", _NOTHING),
    _business("session_files_complete", Scope.SESSION, INFO, "more than one entry tells of a session",
              "files of it are missing", "look for the rest of the folder"),
    _business("rates_agree", Scope.SESSION, SOFT, "commands per hour are commands by hours",
              "start or end was changed by hand after the summary was written", _NOTHING),
    _business("parts_within_whole", Scope.SESSION, SOFT, "tests passed and builds succeeded are not more than there were",
              "the counters are wrong", _NOTHING),
    _business("few_interruptions", Scope.SESSION, SOFT, "no more than 100 interruptions", "the counter is wrong", _NOTHING),
    # Figures that arrived added up.
    _data("metric_counts_calls", Scope.METRIC, SOFT, "counts are whole numbers from 0", "any other is taken as its default",
          _NOTHING),
    _data("errors_within_calls", Scope.METRIC, SOFT, "no more errors than calls", "they are brought down to the calls", _NOTHING),
    _business("success_rate_agrees", Scope.METRIC, SOFT, "the success rate is calls without errors by calls",
              "counts are kept, the rate is computed", _NOTHING),
    _business("average_agrees", Scope.METRIC, SOFT, "average by calls is the total, give or take 10 %",
              "the total is kept, the average is computed", _NOTHING),
    # Events of transcripts and exports.
    _data("event_numbers_in_range", Scope.EVENT, SOFT, "numbers of an event are from 0 to 2^63 - 1", "a wrong unit", _NOTHING),
    _business("tokens_add_up", Scope.EVENT, SOFT, "tokens in all are not less than those of each kind", "a writer's fault",
              _NOTHING),
    # The whole set.
    _data("counts_reconcile", Scope.SET, HARD, "source = loaded + merged + rejected + skipped, exactly",
          "an entry without a fate is a lost one", "verify the run once more, and report this as a bug"),
    _data("rows_are_equal", Scope.SET, HARD, "digests of source and target are equal, by table, day and tool",
          "a row is missing, doubled or different", "look at `mismatches` in report.json; roll back, and report this as a bug"),
    _data("rejects_within_pause", Scope.SET, SOFT, "at most 1 % of the entries are rejected", "the source may be another format",
          "look at errors.jsonl, then go on with --accept-rejects"),
    _data("rejects_within_stop", Scope.SET, HARD, "at most 5 % of the entries are rejected", "the source is damaged or foreign",
          "look at errors.jsonl and repair the source"),
    _data("durations_are_there", Scope.SET, SOFT, "at most 2 % of the calls have no duration", "averages leave them out",
          "look which writer leaves them out"),
    _business("failures_are_few", Scope.SET, SOFT, "at most half of the calls fail", "the outcome may be inverted", _NOTHING),
    _business("scores_are_spread", Scope.SET, SOFT, "the mean score is between 10 and 90", "a constant was written", _NOTHING),
    _business("sessions_have_calls", Scope.SET, SOFT, "at least half of the sessions have calls",
              "the calls are in another folder", "bring both folders of the older hooks in together"),
    _business("counters_add_up", Scope.SET, SOFT, "sessions have the calls that their summaries count",
              "calls were lost before they were written, or belong to another folder", "bring the other folder in as well"),
    _data("facts_agree", Scope.SET, SOFT, "entries that tell of one fact tell the same of it", "the first one is kept",
          "look whether a copy of the source was changed"),
    _business("calls_have_sessions", Scope.SET, SOFT, "at most 10 % of the calls are without a session",
              "the sessions are in another folder", "bring both folders of the older hooks in together"),
    _business("tools_are_known", Scope.SET, SOFT, "at most 5 % of the calls are of `other` tools", "names were no identifiers",
              _NOTHING),
    _business("years_are_few", Scope.SET, SOFT, "the set spans at most 10 years", "a clock was wrong", _CLOCK),
)  # fmt: skip
"""Every rule, in the order in which it is applied."""

BY_ID: Mapping[str, Rule] = MappingProxyType({rule.id: rule for rule in RULES})
BY_REASON: Mapping[str, Rule] = MappingProxyType({reason: rule for rule in RULES for reason in rule.reasons})
REASON_PREFIX = "rule_"
"""Before a rule's id in the reason of an entry that it rejected."""


def rule_of(reason: str) -> Rule | None:
    """Return the rule that an entry was rejected by; None for a reason that is no rule's (a custom one, a target's)."""
    return BY_REASON.get(reason) or BY_ID.get(reason.removeprefix(REASON_PREFIX))
