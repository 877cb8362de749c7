"""Which version of a record holds after two sides changed it: the five strategies and the three-way merge, all pure.

`resolve` is total (any two versions have a result), deterministic, and harmless to repeat: merging a result again
with what it was merged from changes nothing. It must never read a clock, a file or a policy; rules, the next stamp
and a plug-in's proposals are given. Under `merge_fields` with a symmetric clash, and under `latest_wins`, it does
not matter which side is called local.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from metricsd.fields import LIST_ITEMS_MAX, NUMBER_MAX, find_field
from metricsd.hlc import Stamp
from metricsd.protocol import FieldValue


class Version(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One side's version of a record: fields, the stamp of each, and whether (and when) it was deleted."""

    fields: dict[str, FieldValue] = {}
    stamps: dict[str, str] = {}
    deleted: bool = False
    stamp: str | None = None


class Strategy(StrEnum):
    """How a field is decided."""

    LOCAL_WINS = "local_wins"
    REMOTE_WINS = "remote_wins"
    LATEST_WINS = "latest_wins"
    MERGE_FIELDS = "merge_fields"
    CUSTOM = "custom"


class Clash(StrEnum):
    """How `merge_fields` decides a field that both sides changed. A rule that does not fit the values is `latest`."""

    LATEST = "latest"
    MAX = "max"
    MIN = "min"
    UNION = "union"
    """Of lists: what either side added, without what either side removed."""
    SUM_DELTA = "sum_delta"
    """What both sides added since the base; without a base the greater one, so that nothing is counted twice."""
    LOCAL = "local"
    REMOTE = "remote"


class DeleteRule(StrEnum):
    """What holds when one side deleted the record and the other changed it."""

    DELETE_WINS = "delete_wins"
    EDIT_WINS = "edit_wins"
    LATEST_WINS = "latest_wins"


class FieldRule(NamedTuple):
    """How one field is decided.

    `per_record` makes latest_wins take all fields under such rules from one side, the one with the latest stamp
    among them. `fallback` decides for `custom` when the plug-in proposed nothing; it is never `custom` itself.
    """

    strategy: Strategy = Strategy.MERGE_FIELDS
    clash: Clash = Clash.LATEST
    per_record: bool = False
    fallback: Strategy = Strategy.MERGE_FIELDS

    @classmethod
    def of(cls, strategy: str, clash: str, per: str, fallback: str) -> FieldRule:
        """Return the rule that a policy names in plain words; raise ValueError for a word that there is not."""
        return _named(strategy, clash, per, fallback)


@lru_cache(maxsize=256)
def _named(strategy: str, clash: str, per: str, fallback: str) -> FieldRule:
    return FieldRule(Strategy(strategy), Clash(clash), per == "record", Strategy(fallback))


DEFAULT_RULE = FieldRule()
ANY_FIELD = "*"
"""Key of the rule for every field that a mapping of rules does not name."""

Rules = Mapping[str, FieldRule] | Callable[[str], FieldRule]


class Conflict(NamedTuple):
    """Two versions of a record and what both sides last agreed on (None: they never did)."""

    type: str
    id: str
    base: Version | None
    local: Version
    remote: Version


class Resolution(NamedTuple):
    """What holds now.

    decided   of each field whose sides differ (or `deleted`): `<how>=<local|remote|merged>`, where `how` is the
              strategy, the clash rule, or `single` when only one side changed it
    strategy  the strategy that decided, or the delete rule; `merge_fields` when several did
    changed_local, changed_remote   whether it says something else than that side
    """

    version: Version
    decided: Mapping[str, str]
    strategy: str
    changed_local: bool
    changed_remote: bool


class _Side(NamedTuple):
    """One field on one side. An absent field is None with the stamp "", which loses to any."""

    value: FieldValue
    stamp: str


class _Outcome(NamedTuple):
    """What becomes of one field. `stamp` None asks for the fresh one: the value is neither side's."""

    value: FieldValue
    stamp: str | None
    how: str
    taken: str


_LOCAL = "local"
_REMOTE = "remote"
_MERGED = "merged"
_SINGLE = "single"
_EMPTY = Version()


def resolve(
    conflict: Conflict,
    rules: Rules,
    *,
    delete: DeleteRule = DeleteRule.DELETE_WINS,
    fresh: Stamp,
    proposals: Mapping[str, FieldValue] | None = None,
) -> Resolution:
    """Return what holds of a record that two sides changed. Pure and total.

    `fresh` is the caller's next stamp, later than all in the conflict: a value that neither side has gets it.
    `proposals` are a plug-in's answers for the fields under `custom`, already checked.
    """
    if conflict.local.deleted or conflict.remote.deleted:
        return _resolve_deletion(conflict, delete, fresh)
    fields, stamps, differing = _agreed(conflict.local, conflict.remote)
    rule_of = _rule_of(rules)
    chosen = {name: rule_of(name) for name in differing}
    whole = _later_record(conflict, chosen)
    decided: dict[str, str] = {}
    taken: set[str] = set()
    clashed: set[str] = set()
    single: set[str] = set()
    for name, rule in chosen.items():
        sides = _side(conflict.local, name), _side(conflict.remote, name)
        value, stamp, how, side = _decide(conflict, name, rule, sides, whole, proposals)
        decided[name] = f"{how}={side}"
        taken.add(side)
        (single if how == _SINGLE else clashed).add(_strategy_of(rule, how))
        if value is None and not stamp:
            if side == _REMOTE:
                continue
            # A side without the field cleared it by winning: the clearing is a change of its own.
            stamp = None
        fields[name] = value
        if stamp != "":
            stamps[name] = fresh.text() if stamp is None else stamp
    version = Version(fields=fields, stamps=stamps, stamp=_max_or_none(conflict.local.stamp, conflict.remote.stamp))
    ways = clashed or single
    strategy = ways.pop() if len(ways) == 1 else Strategy.MERGE_FIELDS.value
    return Resolution(version, decided, strategy, taken - {_LOCAL} != set(), taken - {_REMOTE} != set())


def clashing(conflict: Conflict) -> list[str]:
    """Return the fields that both sides changed to different values: what a plug-in is asked about."""
    local, remote, base = conflict.local, conflict.remote, conflict.base or _EMPTY
    if local.deleted or remote.deleted:
        return []
    return [
        name
        for name in sorted(local.fields.keys() | remote.fields.keys())
        if not _equal(local.fields.get(name), remote.fields.get(name))
        and _changed(_side(local, name), _side(base, name))
        and _changed(_side(remote, name), _side(base, name))
    ]


def tags_of(conflict: Conflict) -> frozenset[str]:
    """Return the tags of either side, by which rules match: the same set whichever side asks."""
    found: set[str] = set()
    for version in (conflict.local, conflict.remote):
        tags = version.fields.get("tags")
        if isinstance(tags, list):
            found.update(tags)
    return frozenset(found)


def same(one: Version, other: Version) -> bool:
    """Return whether two versions say the same; a cleared field equals an absent one, two tombstones are equal."""
    if one.deleted or other.deleted:
        return one.deleted == other.deleted
    return _present(one) == _present(other)


def _present(version: Version) -> dict[str, FieldValue]:
    return {name: value for name, value in version.fields.items() if value is not None}


def _resolve_deletion(conflict: Conflict, rule: DeleteRule, fresh: Stamp) -> Resolution:
    taken, how = _deletion(conflict, rule)
    version = taken if taken.deleted else _revived(conflict, taken, fresh)
    side = _LOCAL if taken is conflict.local else _REMOTE
    decided = {"deleted": f"{how}={side}"} if conflict.local.deleted != conflict.remote.deleted else {}
    strategy = how if how != _SINGLE else Strategy.MERGE_FIELDS.value
    return Resolution(version, decided, strategy, not same(version, conflict.local), not same(version, conflict.remote))


def _agreed(local: Version, remote: Version) -> tuple[dict[str, FieldValue], dict[str, str], list[str]]:
    """Return the fields on which both sides agree, each with its later stamp, and the names of the others."""
    fields: dict[str, FieldValue] = {}
    stamps: dict[str, str] = {}
    differing = []
    for name in sorted(local.fields.keys() | remote.fields.keys()):
        here, there = local.fields.get(name), remote.fields.get(name)
        if not _equal(here, there):
            differing.append(name)
            continue
        stamp, other = local.stamps.get(name, ""), remote.stamps.get(name, "")
        if here is None and not stamp and not other:
            continue
        fields[name] = here if stamp >= other else there
        if stamp or other:
            stamps[name] = max(stamp, other)
    return fields, stamps, differing


def _max_or_none(one: str | None, other: str | None) -> str | None:
    return max(one or "", other or "") or None


def _rule_of(rules: Rules) -> Callable[[str], FieldRule]:
    if not isinstance(rules, Mapping):
        return rules
    known, default = rules, rules.get(ANY_FIELD, DEFAULT_RULE)
    return lambda name: known.get(name, default)


def _strategy_of(rule: FieldRule, how: str) -> str:
    """Return the strategy that decided: the rule's own, or its fallback where a plug-in proposed nothing."""
    if rule.strategy is Strategy.CUSTOM and how not in (Strategy.CUSTOM, _SINGLE):
        return _fallback(rule).strategy.value
    return rule.strategy.value


def _deletion(conflict: Conflict, rule: DeleteRule) -> tuple[Version, str]:
    """Return the side that holds when at least one is deleted, and how that was decided."""
    local, remote, base = conflict.local, conflict.remote, conflict.base
    if local.deleted and remote.deleted:
        return max(local, remote, key=_order_of), _SINGLE
    dead, live = (local, remote) if local.deleted else (remote, local)
    if base is not None and base.deleted and (not dead.stamp or dead.stamp == base.stamp):
        # Both knew of the deletion, and the live side brought the record back afterwards.
        return live, _SINGLE
    if base is not None and not base.deleted and not _edited(live, base):
        return dead, _SINGLE
    match rule:
        case DeleteRule.DELETE_WINS:
            return dead, rule.value
        case DeleteRule.EDIT_WINS:
            return live, rule.value
        case DeleteRule.LATEST_WINS:
            edited = max([*live.stamps.values(), live.stamp or ""])
            return (live if edited > (dead.stamp or "") else dead), rule.value


def _order_of(version: Version) -> tuple[str, str]:
    return version.stamp or "", json.dumps([version.fields, version.stamps], sort_keys=True)


def _edited(version: Version, base: Version) -> bool:
    return (version.stamp or "") > (base.stamp or "") or any(
        _changed(_side(version, name), _side(base, name)) for name in version.fields.keys() | base.fields.keys()
    )


def _revived(conflict: Conflict, live: Version, fresh: Stamp) -> Version:
    """Return the live side as one that came back after the other side's deletion."""
    dead = conflict.remote if live is conflict.local else conflict.local
    stamp = live.stamp if live.stamp and live.stamp > (dead.stamp or "") else fresh.text()
    return Version(fields=live.fields, stamps=live.stamps, stamp=stamp)


def _later_record(conflict: Conflict, rules: Mapping[str, FieldRule]) -> str:
    """Return the side with the latest change among the fields that are decided per record; "" without such fields."""
    wanted = [name for name, rule in rules.items() if rule.per_record and rule.strategy is Strategy.LATEST_WINS]
    if not wanted:
        return ""
    base = conflict.base or _EMPTY
    here, there = (
        sorted(
            (
                (side.stamp, name, json.dumps(side.value))
                for name in wanted
                if _changed(side := _side(version, name), _side(base, name))
            ),
            reverse=True,
        )
        for version in (conflict.local, conflict.remote)
    )
    return _LOCAL if here > there else _REMOTE


def _decide(
    conflict: Conflict,
    name: str,
    rule: FieldRule,
    sides: tuple[_Side, _Side],
    whole: str,
    proposals: Mapping[str, FieldValue] | None,
) -> _Outcome:
    """Return what becomes of one field whose sides differ."""
    local, remote = sides
    strategy = rule.strategy
    if strategy is Strategy.LOCAL_WINS:
        return _Outcome(*local, strategy, _LOCAL)
    if strategy is Strategy.REMOTE_WINS:
        return _Outcome(*remote, strategy, _REMOTE)
    if strategy is Strategy.LATEST_WINS and rule.per_record and whole:
        return _Outcome(*(local if whole == _LOCAL else remote), strategy, whole)
    base = _side(conflict.base or _EMPTY, name)
    if not _changed(remote, base):
        return _Outcome(*local, _SINGLE, _LOCAL)
    if not _changed(local, base):
        return _Outcome(*remote, _SINGLE, _REMOTE)
    if strategy is Strategy.LATEST_WINS:
        return _later(local, remote, strategy)
    if strategy is Strategy.CUSTOM:
        if proposals is not None and name in proposals:
            return _settle(proposals[name], local, remote, strategy)
        return _decide(conflict, name, _fallback(rule), sides, whole, None)
    return _clash(conflict, name, rule.clash, local, remote)


def _fallback(rule: FieldRule) -> FieldRule:
    strategy = Strategy.MERGE_FIELDS if rule.fallback is Strategy.CUSTOM else rule.fallback
    return FieldRule(strategy, rule.clash)


def _clash(conflict: Conflict, name: str, clash: Clash, local: _Side, remote: _Side) -> _Outcome:
    """Return the outcome of a field that both sides changed, by the rule, or by `latest` where that does not fit."""
    match clash:
        case Clash.LOCAL:
            return _Outcome(*local, clash, _LOCAL)
        case Clash.REMOTE:
            return _Outcome(*remote, clash, _REMOTE)
        case Clash.MAX | Clash.MIN:
            if _is_number(local.value) and _is_number(remote.value):
                wins = (local.value > remote.value) == (clash is Clash.MAX)  # type: ignore[operator]
                return _Outcome(*(local if wins else remote), clash, _LOCAL if wins else _REMOTE)
        case Clash.UNION:
            items = _union(conflict.base, name, local.value, remote.value)
            if items is not None:
                return _settle_items(items, local, remote)
        case Clash.SUM_DELTA:
            total = _sum_delta(conflict, name, local.value, remote.value)
            if total is not None:
                return _settle(total, local, remote, clash)
        case Clash.LATEST:
            return _later(local, remote, clash)
    return _later(local, remote, Clash.LATEST)


def _later(local: _Side, remote: _Side, how: str) -> _Outcome:
    """Return the side with the later stamp; equal ones are ordered by value, so that all devices choose the same."""
    if local.stamp != remote.stamp:
        wins = local.stamp > remote.stamp
    else:
        wins = (local.value is not None, json.dumps(local.value)) > (remote.value is not None, json.dumps(remote.value))
    return _Outcome(*(local if wins else remote), how, _LOCAL if wins else _REMOTE)


def _settle(value: FieldValue, local: _Side, remote: _Side, how: str) -> _Outcome:
    """Return the outcome of a computed value: a side that has it already keeps its stamp."""
    if _equal(value, local.value):
        return _Outcome(*local, how, _LOCAL)
    if _equal(value, remote.value):
        return _Outcome(*remote, how, _REMOTE)
    return _Outcome(value, None, how, _MERGED)


def _union(base: Version | None, name: str, local: FieldValue, remote: FieldValue) -> set[str] | None:
    """Return the three-way union of two lists; None when they are none, or too long together."""
    sides = ([] if local is None else local, [] if remote is None else remote)
    if not isinstance(sides[0], list) or not isinstance(sides[1], list):
        return None
    here, there = set(sides[0]), set(sides[1])
    known = (base or _EMPTY).fields.get(name)
    old = set(known) if isinstance(known, list) else set()
    items = (here | there) - (old - here) - (old - there)
    return items if len(items) <= max(LIST_ITEMS_MAX, len(here), len(there)) else None


def _settle_items(items: set[str], local: _Side, remote: _Side) -> _Outcome:
    """Return a set as the list of the side that has it (the later, if both have), else sorted."""
    holds = [
        (side.stamp, taken, side)
        for taken, side in ((_LOCAL, local), (_REMOTE, remote))
        if set(side.value if isinstance(side.value, list) else []) == items
    ]
    if len(holds) == 2:
        return _later(local, remote, Clash.UNION)
    if holds:
        _, taken, side = holds[0]
        return _Outcome(*side, Clash.UNION, taken)
    return _Outcome(sorted(items), None, Clash.UNION, _MERGED)


def _sum_delta(conflict: Conflict, name: str, local: FieldValue, remote: FieldValue) -> int | float | None:
    """Return the base plus what both sides added; None when these are no numbers."""
    if not isinstance(local, int | float) or not isinstance(remote, int | float):
        return None
    if not _is_number(local) or not _is_number(remote):
        return None
    if conflict.base is None:
        return max(local, remote)
    known = conflict.base.fields.get(name)
    old = known if isinstance(known, int | float) and _is_number(known) else 0
    field = find_field(conflict.type, name)
    low, high = (field.low, field.high) if field is not None else (-NUMBER_MAX, NUMBER_MAX)
    total = local + remote - old
    # Bounds are whole numbers: a count stays a count.
    return int(low) if total < low else int(high) if total > high else total


def _side(version: Version, name: str) -> _Side:
    value = version.fields.get(name)
    return _Side(value, version.stamps.get(name, ""))


def _changed(side: _Side, base: _Side) -> bool:
    """Return whether a side changed a field since the base, be it there and back: the stamp tells."""
    return side.stamp > base.stamp or not _equal(side.value, base.value)


def _equal(one: FieldValue, other: FieldValue) -> bool:
    # In Python True == 1, on the wire they differ.
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _is_number(value: FieldValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
