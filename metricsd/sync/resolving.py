"""Resolves what both sides changed: takes open conflicts, decides each by the policy in force, writes and logs the result.

`conflict.resolve` decides, purely; here are the effects. A result and its log row are one transaction; a conflict whose
record was edited meanwhile is left for the next look, so that an edit is never lost to a decision that did not see
it. A conflict stays open only when its result could not be a record, and then a person decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import structlog

from metricsd import conflict
from metricsd.conflict import Clash, DeleteRule, FieldRule, Resolution, Strategy, Version
from metricsd.errors import LineRejected
from metricsd.hlc import Stamp
from metricsd.policy import InForce, Plugin, Rule
from metricsd.protocol import FieldValue
from metricsd.store import conflict_log, hlc_mark, records, sessions
from metricsd.store.conflict_log import Decision, Entry
from metricsd.store.connection import Store
from metricsd.sync.plugins import Answer
from metricsd.sync.round import Run

BATCH = 500
"""Conflicts that are decided between two transactions: what a crash may repeat, and how long the store is busy."""
BATCHES_MAX = 2000
RULES_NAMED_MAX = 3
"""Rules that a log row names; a record of many clashes may be decided by more."""

log = structlog.get_logger("conflict")


class Policies(Protocol):
    """Where the policies in force come from (policy.Layers)."""

    def current(self) -> InForce:
        """Return the policies in force now."""
        ...


class Plugins(Protocol):
    """Runs plug-ins (plugins.Pool)."""

    async def propose(self, plugin: Plugin, subject: conflict.Conflict, names: Sequence[str]) -> Answer:
        """Return the plug-in's answer for the fields `names`; never raises for what a plug-in does."""
        ...

    def close(self) -> None:
        """End what runs."""
        ...


class Found(NamedTuple):
    """An open conflict, with the project that rules may match on."""

    entry: Entry
    project: str | None


class Decided(NamedTuple):
    """What was decided of an open conflict."""

    entry: Entry
    version: Version
    decision: Decision


class Resolver:
    """Decides open conflicts by the policies in force; one for a device."""

    def __init__(self, store: Store, run: Run, policies: Policies, plugins: Plugins) -> None:
        self._store = store
        self._run = run
        self._policies = policies
        self._plugins = plugins

    async def resolve_open(self) -> Counter[str]:
        """Decide every open conflict that can be decided; return how many, by strategy."""
        done: Counter[str] = Counter()
        after = 0
        for _ in range(BATCHES_MAX):
            last, found, fresh = await self._run(_read, self._store, after)
            if last == after:
                break
            after = last
            in_force = self._policies.current()
            decided = [await self._decide(one, in_force, fresh) for one in found]
            done += await self._run(_write, self._store, decided)
        return done

    async def _decide(self, found: Found, in_force: InForce, fresh: Stamp) -> Decided:
        """Return what holds, asking plug-ins where a rule names one."""
        if not in_force.plugins:
            return self.decide(found, in_force, fresh)
        entry = found.entry
        subject = conflict.Conflict(entry.type, entry.record_id, entry.base, entry.local, entry.remote)
        proposals, notes = await self._ask_plugins(subject, _Rules(in_force, subject, found.project))
        return self.decide(found, in_force, fresh, proposals, notes)

    @staticmethod
    def decide(
        found: Found,
        in_force: InForce,
        fresh: Stamp,
        proposals: Mapping[str, FieldValue] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> Decided:
        """Return what holds by the policy in force and the plug-ins' answers. Pure."""
        entry = found.entry
        subject = conflict.Conflict(entry.type, entry.record_id, entry.base, entry.local, entry.remote)
        rules = _Rules(in_force, subject, found.project)
        resolution = conflict.resolve(
            subject, rules.field_rule, delete=DeleteRule(in_force.delete.policy), fresh=fresh, proposals=proposals
        )
        decision = Decision(resolution.strategy, _named(resolution, rules, in_force, notes or {}), in_force.sha256)
        return Decided(entry, resolution.version, decision)

    async def _ask_plugins(
        self, subject: conflict.Conflict, rules: _Rules
    ) -> tuple[dict[str, FieldValue], dict[str, str]]:
        """Return the plug-ins' answers by field, and for each field without one why its fallback decides."""
        asked: dict[Plugin, list[str]] = {}
        for name in conflict.clashing(subject):
            rule = rules.rule(name)
            if rule.strategy == Strategy.CUSTOM and rule.plugin is not None:
                asked.setdefault(rule.plugin, []).append(name)
        proposals: dict[str, FieldValue] = {}
        notes: dict[str, str] = {}
        for plugin, names in asked.items():
            answer = await self._plugins.propose(plugin, subject, names)
            if answer.fields is None:
                notes |= dict.fromkeys(names, f"{plugin.name}: {answer.problem}")
                log.warning("plugin.failed", plugin=plugin.name, record_type=subject.type, reason=answer.problem)
            else:
                proposals |= answer.fields
        return proposals, notes


class _Rules:
    """The rules of one record, each looked up once."""

    def __init__(self, in_force: InForce, subject: conflict.Conflict, project: str | None) -> None:
        self._in_force = in_force
        self._type = subject.type
        self._tags = conflict.tags_of(subject)
        self._project = project

    def rule(self, name: str) -> Rule:
        return self._in_force.lookup(self._type, name, self._tags, self._project)

    def field_rule(self, name: str) -> FieldRule:
        return _field_rule(self.rule(name))


@lru_cache(1024)
def _field_rule(rule: Rule) -> FieldRule:
    """Return a policy's rule as conflict.py takes it; every one of its names is checked when a policy is read."""
    return FieldRule(Strategy(rule.strategy), Clash(rule.clash), rule.per == "record", Strategy(rule.fallback))


def _named(resolution: Resolution, rules: _Rules, in_force: InForce, notes: Mapping[str, str]) -> str:
    """Return what decided, as `file:line`s: the rules of the fields that clashed, or of a deletion."""
    names = [name for name, how in resolution.decided.items() if not how.startswith("single=")]
    names = names or list(resolution.decided)
    sources = [in_force.delete.source if name == "deleted" else rules.rule(name).source for name in names]
    distinct = list(dict.fromkeys(sources))
    more = f" and {len(distinct) - RULES_NAMED_MAX} more" if len(distinct) > RULES_NAMED_MAX else ""
    failed = f" ({'; '.join(dict.fromkeys(notes.values()))})" if notes else ""
    return ", ".join(distinct[:RULES_NAMED_MAX]) + more + failed


def _read(store: Store, after: int) -> tuple[int, list[Found], Stamp]:
    """Return the next open conflicts with the number of the last, and a stamp that is later than all in them."""
    last = conflict_log.last_open(store, BATCH, after)
    if last == after:
        return after, [], hlc_mark.read(store)
    with store.transaction():
        entries = records.in_conflict(store, BATCH, after)
        fresh = hlc_mark.make(store, (stamp for entry in entries for stamp in records.stamps_in(entry)))
        found = [Found(entry, sessions.project_of(store, entry.type, entry.record_id)) for entry in entries]
    return last, found, fresh


def _write(store: Store, decided: list[Decided]) -> Counter[str]:
    done: Counter[str] = Counter()
    if not decided:
        return done
    with store.transaction(full=True):
        for one in decided:
            try:
                written = records.decide(store, one.entry, one.version, one.decision)
            except LineRejected as error:
                # Both sides together are more than a record holds: a person has to choose.
                log.warning("conflict.kept_open", id=one.entry.id, record_type=one.entry.type, reason=error.detail)
                continue
            if written:
                done[one.decision.strategy] += 1
    log.info("conflicts.resolved", conflicts=done.total(), strategies=dict(done))
    return done
