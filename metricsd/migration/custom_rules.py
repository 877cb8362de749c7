"""Rules of one's own: a plug-in file that is asked about every row, in a process of its own.

The file is trusted as a conflict plug-in is: nobody else may be able to write it, and what runs are the bytes that
were checked. It sees what the store would keep of a row, never a command, path or message, and can only answer. A
plug-in that fails stops the run, because rows that were not looked at must not pass for good ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from metricsd.decode.older_hooks import AddedUp, SessionNote
from metricsd.errors import UsageError
from metricsd.migration.model import Finding, Planned, Severity
from metricsd.migration.rules import BY_ID, Kind, Rule, Scope
from metricsd.policy.trust import find_weakness
from metricsd.sync.plugins import PluginBroken, PluginProcess

FILE_BYTES_MAX = 1024 * 1024
ROWS_PER_QUESTION = 500
LIMIT_S = 2.0
"""For one question of ROWS_PER_QUESTION rows, measured in the plug-in's process."""
GRACE_S = 10.0
MEMORY_BYTES_MAX = 256 * 1024 * 1024
RULES_MAX = 100
_WORD_CHARS_MAX = 50
_CALLED = """

def resolve(base, local, remote, context):
    if context == "rules":
        return {name: dict(rule) for name, rule in RULES.items()}
    found = []
    for number, row in enumerate(context):
        for rule, field, value_class in check(row) or ():
            found.append((number, rule, field, value_class))
    return {"found": found}
"""
"""What the plug-in's process asks of the file, put behind it: the process is that of conflict plug-ins."""


class _Told(msgspec.Struct):
    what: str
    severity: Severity = Severity.SOFT
    why: str = ""
    fix: str = ""


_encode = msgspec.json.Encoder().encode


class CustomRules:
    """The rules of one file. Close it when the run has ended."""

    def __init__(self, path: Path, *, limit_s: float = LIMIT_S) -> None:
        """Load a file; raise UsageError for one that is refused, broken, or names a rule that exists."""
        self.path = path
        code = _read(path)
        self.sha256 = sha256(code).hexdigest()
        self._limit_s = limit_s
        self._process = PluginProcess()
        try:
            self._process.start(code + _CALLED.encode(), limit_s, MEMORY_BYTES_MAX)
            self.rules = _rules(path, self._ask("rules"))
        except BaseException as error:
            self.close()
            if isinstance(error, PluginBroken):
                raise UsageError(
                    f"{path}: {error}: a file of rules has a dictionary RULES and a function check(row)"
                ) from error
            raise

    def check(self, planned: Sequence[Planned]) -> list[Finding]:
        """Return what the file says of these rows. Raises UsageError when it fails, naming its line."""
        found: list[Finding] = []
        for start in range(0, len(planned), ROWS_PER_QUESTION):
            some = planned[start : start + ROWS_PER_QUESTION]
            try:
                answer = self._ask([seen(one) for one in some])
            except PluginBroken as error:
                raise UsageError(f"{self.path}: {error}: repair it, then resume the run") from error
            found.extend(self._findings(some, answer.get("found")))
        return found

    def close(self) -> None:
        """End the process."""
        self._process.end()

    def _ask(self, context: object) -> Mapping[str, object]:
        reply = self._process.ask(_encode([None, None, None, context]), self._limit_s + GRACE_S)
        if reply.problem:
            raise PluginBroken(reply.problem)
        if not isinstance(reply.fields, dict):
            raise PluginBroken("answered with something else than it was asked")
        return reply.fields

    def _findings(self, some: Sequence[Planned], answer: object) -> list[Finding]:
        try:
            told = msgspec.convert(answer, list[tuple[int, str, str, str]])
        except msgspec.ValidationError as error:
            raise UsageError(
                f"{self.path}: check(row) must give (rule, field, class of value) in texts, not {error}"
            ) from error
        found = []
        for number, rule, field, value_class in told:
            if rule not in self.rules:
                raise UsageError(f"{self.path}: check(row) names a rule {rule[:80]!r} that RULES does not have")
            place = some[number].row.place
            found.append(
                Finding(rule, self.rules[rule].severity, place, field[:_WORD_CHARS_MAX], value_class[:_WORD_CHARS_MAX])
            )
        return found


def seen(planned: Planned) -> dict[str, object]:
    """Return what a rule of one's own sees of a row: fields that the store keeps, and nothing without a value."""
    match planned.row.found:
        case SessionNote() as note:
            start, end = note.start_us, note.end_us
            row: dict[str, object] = {"kind": "session", "session": note.session, "start": start, "end": end, "score": note.score,
                                      "branch": note.branch, "entries": 1 + len(planned.row.others)}  # fmt: skip
        case AddedUp() as metric:
            row = {"kind": "tool_metric", **metric.values}
        case _ if planned.items:
            event = planned.items[0].event
            row = {"user": planned.user, **msgspec.structs.asdict(event)}
            row.pop("batch")
        case _:
            row = {"kind": "other"}
    return {name: value for name, value in row.items() if value is not None}


def _read(path: Path) -> bytes:
    try:
        weak = find_weakness(path)
        if weak is not None:
            raise UsageError(f"the rules in {path} are refused: {weak}")
        with path.open("rb") as stream:
            code = stream.read(FILE_BYTES_MAX + 1)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"the rules in {path} cannot be read ({error})") from error
    if len(code) > FILE_BYTES_MAX:
        raise UsageError(f"the rules in {path} are larger than {FILE_BYTES_MAX} bytes")
    return code


def _rules(path: Path, told: Mapping[str, object]) -> dict[str, Rule]:
    """Return the rules that a file declares."""
    if not 0 < len(told) <= RULES_MAX:
        raise UsageError(f"{path}: RULES must have 1 to {RULES_MAX} rules")
    found: dict[str, Rule] = {}
    for name, value in told.items():
        try:
            one = msgspec.convert(value, _Told)
        except msgspec.ValidationError as error:
            raise UsageError(f"{path}: RULES[{name[:80]!r}]: {error}") from error
        if name in BY_ID or not name.isidentifier() or len(name) > _WORD_CHARS_MAX:
            raise UsageError(
                f"{path}: {name[:80]!r} is no name for a rule: a short identifier that no shipped rule has"
            )
        found[name] = Rule(name, Scope.SET, Kind.BUSINESS, one.severity, one.what, one.why, one.fix)
    return found
