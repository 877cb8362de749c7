"""The product's own decisions that a simulated device or cloud asks, and the policies that may be in force.

A seeded bug replaces one of them, or a method of the model around them; with none replaced the simulator judges the
product. Nothing in here decides anything itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from metricsd.cloud.comparing import Content, is_replay, merged
from metricsd.conflict import Clash, Conflict, DeleteRule, FieldRule, Resolution, Strategy, resolve, tags_of
from metricsd.hlc import Stamp, next_stamp, observe, parse_stamp
from metricsd.policy import InForce, parse
from metricsd.protocol import HelloReply, RecordChange, RecordState
from metricsd.resources import data_folder
from metricsd.store.record_steps import Met, Record, common, decided, is_own, meet, rebased
from metricsd.sync.plan import Decision, LocalStream, decide

Address = tuple[str, str]
"""A record's type and id."""


class Resolve(Protocol):
    """`conflict.resolve` under one policy."""

    def __call__(self, conflict: Conflict, in_force: InForce, fresh: Stamp) -> Resolution: ...


def resolve_by(conflict: Conflict, in_force: InForce, fresh: Stamp) -> Resolution:
    """Return what the product decides by the policy in force, looked up as `sync/resolving.py` does."""
    tags = tags_of(conflict)

    def rule_of(name: str) -> FieldRule:
        rule = in_force.lookup(conflict.type, name, tags, None)
        return FieldRule(Strategy(rule.strategy), Clash(rule.clash), rule.per == "record", Strategy(rule.fallback))

    return resolve(conflict, rule_of, delete=DeleteRule(in_force.delete.policy), fresh=fresh)


def make_stamp(mark: Stamp, seen: Iterable[str], wall_ms: int, device: str) -> Stamp:
    """Return the stamp of an edit, as `store/hlc_mark.py` makes it."""
    for text in seen:
        mark = observe(mark, parse_stamp(text))
    return next_stamp(mark, wall_ms, device)


class Parts(NamedTuple):
    """The pure functions of the product, under the names that the model calls them by."""

    decide: Callable[[LocalStream, HelloReply], Decision] = decide
    meet: Callable[..., Met] = meet
    common: Callable[..., Record] = common
    is_own: Callable[..., bool] = is_own
    decided: Callable[..., Record] = decided
    rebased: Callable[..., tuple[dict[str, str], Stamp]] = rebased
    resolve: Resolve = resolve_by
    make_stamp: Callable[[Stamp, Iterable[str], int, str], Stamp] = make_stamp
    merged: Callable[[RecordState | None, RecordChange], Content] = merged
    is_replay: Callable[[RecordState, RecordChange, Content, str], bool] = is_replay


def _shipped(name: str) -> InForce:
    file = data_folder("conflict_policies") / f"{name}.toml"
    return InForce((parse(file.read_bytes(), file, layer="shipped"),))


POLICIES: Mapping[str, InForce] = {
    name: _shipped(name) for name in ("merge_fields", "latest_wins", "remote_wins", "local_wins")
}
"""The shipped policies, by their files' names."""
SHIPPED = "merge_fields"
ORDERED = frozenset({"merge_fields", "latest_wins"})
"""Policies under which an edit never loses to what it was made after."""
