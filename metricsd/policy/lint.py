"""Finds what is wrong in a policy before it decides anything: dead rules, unknown names, rules that cannot work.

A finding is an `error` when a rule cannot do what it says and a `warning` when it does something that people regret.
Linting reads the plug-ins that a policy names and never runs them.
"""

from __future__ import annotations

import difflib
import hashlib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from metricsd.errors import PolicyError
from metricsd.fields import COMPUTED, ENTITIES, FieldKind
from metricsd.policy.layers import read_policy
from metricsd.policy.parse import examine
from metricsd.policy.rules import ANY, Match, Plugin, Policy, Rule
from metricsd.policy.trust import find_weakness

PLUGIN_BYTES_MAX = 256 * 1024
DERIVED = {"session_counters": "a session's counters are added up from events and never conflict"}
_NUMBERS = frozenset({FieldKind.COUNT, FieldKind.NUMBER})
_FITS = {
    "max": _NUMBERS | {FieldKind.TIME},
    "min": _NUMBERS | {FieldKind.TIME},
    "sum_delta": _NUMBERS,
    "union": frozenset({FieldKind.LIST}),
}


class Finding(NamedTuple):
    """One finding. `code` is stable: syntax, unreachable, unknown, type, converge, plugin or useless."""

    severity: str
    code: str
    source: str
    line: int
    message: str


def lint_file(file: Path, *, layer: str = "user") -> tuple[Policy | None, list[Finding]]:
    """Return the policy of a file (None if it is broken) and every finding, in the order of their lines."""
    try:
        raw = read_policy(file, trusted=layer == "shipped")
    except PolicyError as error:
        return None, [Finding("error", "permission", str(file), 1, str(error).removeprefix(f"{file}: "))]
    policy, mistakes = examine(raw, file, layer=layer)
    if policy is None:
        return None, [Finding("error", "syntax", str(file), line, message) for line, message in mistakes]
    return policy, lint(policy)


def lint(policy: Policy) -> list[Finding]:
    """Return every finding in a policy, in the order of their lines."""
    found: list[Finding] = []
    for number, rule in enumerate(policy.rules):
        for severity, code, message in (
            *_dead(rule, policy.rules[:number]),
            *_names(rule.match),
            *_fit(rule),
            *_converge(rule),
            *_plugin(rule.plugin, policy.layer),
        ):
            found.append(Finding(severity, code, policy.source, rule.line, message))
    if policy.default is not None:
        for severity, code, message in _converge(policy.default):
            found.append(Finding(severity, code, policy.source, policy.default.line, message))
    return sorted(found, key=lambda finding: finding.line)


def read_plugin(plugin: Plugin) -> bytes:
    """Return a plug-in's code; raise PolicyError if it is missing, not what was pinned, or open to others."""
    try:
        weak = find_weakness(plugin.path)
        if weak is not None:
            raise PolicyError(f"plug-in {plugin.path} is refused: {weak}")
        with plugin.path.open("rb") as stream:
            content = stream.read(PLUGIN_BYTES_MAX + 1)
    except (OSError, RuntimeError) as error:
        raise PolicyError(f"plug-in {plugin.path} cannot be read ({error})") from error
    if len(content) > PLUGIN_BYTES_MAX:
        raise PolicyError(f"plug-in {plugin.path} is larger than {PLUGIN_BYTES_MAX} bytes")
    found = hashlib.sha256(content).hexdigest()
    if found != plugin.sha256:
        message = f"has sha256 {found}, pinned is {plugin.sha256 or 'none'}: look at it, then pin what it is"
        raise PolicyError(f"plug-in {plugin.path} {message}")
    return content


_Note = tuple[str, str, str]


def _dead(rule: Rule, earlier: tuple[Rule, ...]) -> list[_Note]:
    for other in earlier:
        if _includes(other.match, rule.match):
            message = f"never applies: the rule of line {other.line} ({other.match.text()}) matches all that it would"
            return [("error", "unreachable", message)]
    return []


def _includes(wide: Match, narrow: Match) -> bool:
    return (
        _glob_includes(wide.entity, narrow.entity)
        and _glob_includes(wide.field, narrow.field)
        and (not wide.tag or (bool(narrow.tag) and _glob_includes(wide.tag, narrow.tag)))
        and (not wide.project or (bool(narrow.project) and _glob_includes(wide.project, narrow.project)))
    )


def _glob_includes(wide: str, narrow: str) -> bool:
    """Return whether a pattern surely matches all that another does; False when unsure."""
    if wide in (ANY, narrow):
        return True
    if "[" in wide or "?" in wide:
        return not set("*?[") & set(narrow) and fnmatchcase(narrow, wide)
    # A literal '*' of the narrow text can only be taken up by a '*' of the wide pattern.
    return fnmatchcase(narrow, wide)


def _names(match: Match) -> list[_Note]:
    entities = [entity for entity in ENTITIES if fnmatchcase(entity, match.entity)]
    if not entities:
        if match.entity in DERIVED:
            return [("error", "unknown", f"entity {match.entity!r}: {DERIVED[match.entity]}")]
        return [("error", "unknown", f"unknown entity {match.entity!r}{_hint(match.entity, list(ENTITIES))}")]
    names = sorted({name for entity in entities for name in ENTITIES[entity]})
    if any(fnmatchcase(name, match.field) for name in names):
        return []
    if match.field in COMPUTED:
        return [("error", "unknown", f"field {match.field!r} never conflicts: {COMPUTED[match.field]}")]
    return [
        ("error", "unknown", f"unknown field {match.field!r} of {' and '.join(entities)}{_hint(match.field, names)}")
    ]


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f": did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _fit(rule: Rule) -> list[_Note]:
    """Return whether the clash rule fits the kinds of the fields."""
    if rule.clash != "latest" and "merge_fields" not in (rule.strategy, rule.plugin and rule.fallback):
        return [("warning", "useless", f"clash = {rule.clash!r} has no effect: the strategy is {rule.strategy}")]
    kinds = _FITS.get(rule.clash)
    if kinds is None:
        return []
    meant = {
        name: field.kind
        for entity, fields in ENTITIES.items()
        if fnmatchcase(entity, rule.match.entity)
        for name, field in fields.items()
        if fnmatchcase(name, rule.match.field)
    }
    wrong = [name for name, kind in meant.items() if kind not in kinds]
    if not wrong:
        return []
    if rule.match.field in meant or len(wrong) == len(meant):
        what = " or ".join(sorted(kinds))
        return [("error", "type", f"clash = {rule.clash!r} needs a {what}, and {wrong[0]} is a {meant[wrong[0]]}")]
    shown = ", ".join(wrong[:5])
    return [("warning", "type", f"clash = {rule.clash!r} does not fit {shown}: there the latest wins")]


def _converge(rule: Rule) -> list[_Note]:
    """Return what keeps devices that follow the same rule from one agreed answer."""
    ways = [rule.strategy]
    ways += [rule.fallback] if rule.plugin is not None else []
    sided = "local_wins" in ways or ("merge_fields" in ways and rule.clash == "local")
    if not sided:
        return []
    what = "clash = 'local'" if rule.clash == "local" else "local_wins"
    message = f"{what} does not converge by itself: two devices under it overwrite each other, whoever syncs last wins"
    return [("warning", "converge", message)]


def _plugin(plugin: Plugin | None, layer: str) -> list[_Note]:
    if plugin is None or layer == "tenant":
        # The device that follows a tenant's policy has its own copy; here there is none to look at.
        return []
    try:
        read_plugin(plugin)
    except PolicyError as error:
        return [("error", "plugin", str(error))]
    return []
