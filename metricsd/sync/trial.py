"""What a policy would decide, without deciding it: for `metricsd policy test` and `dry-run`.

Nothing here writes. The decision is made by the same functions as in earnest (`resolving.py`), on one thread, and a
plug-in that the policy names is really asked.
"""

from __future__ import annotations

from typing import NamedTuple

from metricsd.conflict import Conflict, DeleteRule, FieldRule, Resolution, Strategy, Version, clashing, resolve, tags_of
from metricsd.hlc import Stamp, next_stamp, parse_stamp
from metricsd.policy import InForce, Plugin, Policy, Rule
from metricsd.protocol import FieldValue
from metricsd.sync.plugins import Pool

_DEVICE = "trial"


class Outcome(NamedTuple):
    """A decision, the `file:line` of the rule for each field that differs, and what plug-ins did wrong."""

    resolution: Resolution
    rules: dict[str, str]
    problems: list[str]


def with_file(in_force: InForce, policy: Policy) -> InForce:
    """Return the policies that would be in force if this one took the place of the user's own."""
    above = tuple(one for one in in_force.policies if one.layer in ("system", "tenant"))
    shipped = tuple(one for one in in_force.policies if one.layer == "shipped")
    return InForce((*above, policy._replace(layer="user"), *shipped))


def decide(in_force: InForce, subject: Conflict, project: str | None, pool: Pool) -> Outcome:
    """Return what these policies make of a conflict."""
    tags = tags_of(subject)

    def rule(name: str) -> Rule:
        return in_force.lookup(subject.type, name, tags, project)

    def field_rule(name: str) -> FieldRule:
        found = rule(name)
        return FieldRule.of(found.strategy, found.clash, found.per, found.fallback)

    asked: dict[Plugin, list[str]] = {}
    for name in clashing(subject):
        found = rule(name)
        if found.strategy == Strategy.CUSTOM and found.plugin is not None:
            asked.setdefault(found.plugin, []).append(name)
    proposals: dict[str, FieldValue] = {}
    problems = []
    for plugin, names in asked.items():
        answer = pool.ask(plugin, subject, names)
        proposals |= answer.fields or {}
        if answer.fields is None:
            problems.append(f"{plugin.name}: {answer.problem}")
    delete = DeleteRule(in_force.delete.policy)
    resolution = resolve(subject, field_rule, delete=delete, fresh=later_than(subject), proposals=proposals)
    rules = {name: in_force.delete.source if name == "deleted" else rule(name).source for name in resolution.decided}
    return Outcome(resolution, rules, problems)


def later_than(subject: Conflict) -> Stamp:
    """Return a stamp that is later than all in a conflict."""
    versions = [version for version in (subject.base, subject.local, subject.remote) if version is not None]
    texts = [text for version in versions for text in (*version.stamps.values(), version.stamp) if text]
    return next_stamp(max(map(parse_stamp, texts), default=Stamp(0, 0, _DEVICE)), 0, _DEVICE)


def differences(one: Version, other: Version) -> dict[str, tuple[FieldValue, FieldValue]]:
    """Return the fields in which two versions differ, and `deleted` if they differ in that."""
    if one.deleted or other.deleted:
        return {} if one.deleted == other.deleted else {"deleted": (one.deleted, other.deleted)}
    names = sorted(one.fields.keys() | other.fields.keys())
    return {
        name: (one.fields.get(name), other.fields.get(name))
        for name in names
        if one.fields.get(name) != other.fields.get(name)
    }
