"""The policies in force: system over tenant over user over shipped, read again when a file changes.

A file that is broken, or that others could have written, never takes force: the last good version of it stays in
its place, across restarts too, and the error is said by `metricsd status`. A tenant's file may name only plug-ins
that the device's own policies vouch for; with any other, the rule's fallback decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from metricsd.errors import PolicyError
from metricsd.policy.parse import FILE_BYTES_MAX, parse
from metricsd.policy.rules import Delete, Match, Plugin, Policy, Rule
from metricsd.policy.trust import find_weakness
from metricsd.policy_places import LAYERS, Places, Signature, files_of, signature

DEFAULT_DELETE = "delete_wins"
_CACHE_MAX = 4096
_LAST_RESORT = Rule(Match(), "merge_fields", "built in", 0, "shipped")


class InForce:
    """The policies that decide, from the layer asked first to the last, and what kept others from it."""

    def __init__(self, policies: tuple[Policy, ...], errors: tuple[str, ...] = ()) -> None:
        self.policies = policies
        self.errors = errors
        own = [policy for policy in policies if policy.layer != "shipped"] or list(policies)
        self.name = " + ".join(policy.name for policy in own)
        self.version = own[0].version if own else 0
        self.source = own[0].source if own else ""
        sums = [policy.sha256 for policy in own]
        self.sha256 = sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()
        self.delete = _delete(policies)
        self.plugins = _plugins(policies)
        self._lookup = lru_cache(_CACHE_MAX)(self._search)

    def lookup(self, entity: str, field: str, tags: frozenset[str] = frozenset(), project: str | None = None) -> Rule:
        """Return the rule that decides a field; there always is one."""
        return self._lookup(entity, field, tags, project)

    def candidates(self, entity: str, field: str, tags: frozenset[str], project: str | None) -> list[Rule]:
        """Return the rule that each file would choose, in the order in which they are asked."""
        found = (policy.find(entity, field, tags, project) for policy in self.policies)
        return [rule for rule in found if rule is not None]

    def report(self) -> dict[str, object]:
        """Return the `policy` section of `metricsd status`."""
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "source": self.source,
            "error": "; ".join(self.errors) or None,
        }

    def _search(self, entity: str, field: str, tags: frozenset[str], project: str | None) -> Rule:
        chosen: Rule | None = None
        for rule in self.candidates(entity, field, tags, project):
            # The first layer that has an answer gives it, unless a lower one overrides it on purpose.
            if chosen is None or rule.override:
                chosen = rule
            if rule.lock:
                break
        return self._vouched(chosen) if chosen is not None else _LAST_RESORT

    def _vouched(self, rule: Rule) -> Rule:
        """Return a tenant's rule with the device's own plug-in, or with its fallback when there is none."""
        if rule.plugin is None or rule.layer != "tenant":
            return rule
        own = self.plugins.get(rule.plugin.name)
        if own is None or rule.plugin.sha256 not in ("", own.sha256):
            return rule._replace(strategy=rule.fallback, plugin=None)
        return rule._replace(plugin=own)


class Layers:
    """Keeps the policies in force, reading again what changed."""

    def __init__(self, places: Places, *, keep: bool = False) -> None:
        """`keep` lets it write: the last good copies and the report for `status`. Only the daemon does."""
        self.places = places
        self._keep = keep
        self._seen: Signature | None = None
        self._in_force: InForce | None = None
        self._good: dict[str, Policy] = {}

    def current(self) -> InForce:
        """Return the policies in force now; costs a few looks at file times when nothing changed."""
        seen = signature(self.places)
        if self._in_force is None or seen != self._seen:
            self._in_force = self._load()
            self._seen = seen
            if self._keep:
                report = {**self._in_force.report(), "files": seen}
                _write(self.places.report, json.dumps(report).encode())
        return self._in_force

    def _load(self) -> InForce:
        policies: list[Policy] = []
        errors: list[str] = []
        used: set[str] = set()
        for layer in LAYERS:
            for file in files_of(self.places, layer):
                kept = self.places.kept / f"{layer}-{file.name}"
                used.add(kept.name)
                found, error = self._read(file, layer, kept)
                if error:
                    errors.append(error)
                if found is not None:
                    policies.append(found)
        in_force = InForce(tuple(policies))
        in_force.errors = (*errors, *_unvouched(in_force))
        self._good = {name: policy for name, policy in self._good.items() if name in used}
        if self._keep:
            self._forget(used)
        return in_force

    def _read(self, file: Path, layer: str, kept: Path) -> tuple[Policy | None, str]:
        try:
            raw = read_policy(file, trusted=layer == "shipped")
            policy = parse(raw, file, layer=layer)
        except PolicyError as error:
            old = self._good.get(kept.name)
            with contextlib.suppress(PolicyError):
                old = old or parse(read_policy(kept), file, layer=layer)
            if old is None:
                return None, f"{error}; it is not in force"
            return old, f"{error}; its last good version stays in force"
        self._good[kept.name] = policy
        if self._keep and layer != "shipped":
            _write(kept, raw)
        return policy, ""

    def _forget(self, used: set[str]) -> None:
        """Drop the copies of files that are gone: who removes a policy means it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for old in self.places.kept.iterdir():
                if old.name not in used:
                    old.unlink()


def load(places: Places) -> InForce:
    """Return the policies in force, writing nothing."""
    return Layers(places).current()


def read_policy(file: Path, *, trusted: bool = False) -> bytes:
    """Return a policy file's bytes; raise PolicyError if it cannot be read or somebody else could have written it."""
    try:
        weak = None if trusted else find_weakness(file)
        if weak is not None:
            raise PolicyError(f"{file}: refused: {weak}")
        with file.open("rb") as stream:
            return stream.read(FILE_BYTES_MAX + 1)
    except (OSError, RuntimeError) as error:
        raise PolicyError(f"{file}: cannot be read ({error}): check its permissions") from error


def _delete(policies: tuple[Policy, ...]) -> Delete:
    for policy in policies:
        if policy.delete is not None:
            return policy.delete
    return Delete(DEFAULT_DELETE, "built in")


def _plugins(policies: tuple[Policy, ...]) -> Mapping[str, Plugin]:
    """Return the plug-ins that the device's own policies vouch for, by file name."""
    found: dict[str, Plugin] = {}
    for policy in policies:
        if policy.layer == "tenant":
            continue
        folder = Path(policy.source).absolute().parent
        for name, sha256 in policy.pins.items():
            found.setdefault(name, Plugin(name, folder / name, sha256))
        for rule in policy.rules:
            if rule.plugin is not None:
                found.setdefault(rule.plugin.name, rule.plugin)
    return found


def _unvouched(in_force: InForce) -> list[str]:
    return [
        f"{rule.source}: plug-in {rule.plugin.name!r} is not pinned on this device; {rule.fallback} decides instead"
        for policy in in_force.policies
        for rule in policy.rules
        if rule.layer == "tenant"
        and rule.plugin is not None
        and ((own := in_force.plugins.get(rule.plugin.name)) is None or rule.plugin.sha256 not in ("", own.sha256))
    ]


def _write(file: Path, content: bytes) -> None:
    """Put a file in place as a whole, readable by its owner alone. A full disk costs the copy, not the policy."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        beside.touch(0o600)
        beside.write_bytes(content)
        beside.replace(file)
