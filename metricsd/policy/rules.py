"""A policy as a value: its ordered rules, and which of them decides a field. Pure.

Strategies and clash rules are plain names here, because a policy is text that somebody wrote; conflict.py's closed
sets are tested to be the same. This module must never read a file: parse.py makes policies, layers.py finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

STRATEGIES = ("local_wins", "remote_wins", "latest_wins", "merge_fields", "custom")
BUILT_IN = STRATEGIES[:-1]
CLASHES = ("latest", "max", "min", "union", "sum_delta", "local", "remote")
DELETES = ("delete_wins", "edit_wins", "latest_wins")
SCOPES = ("field", "record")
ANY = "*"


class Match(NamedTuple):
    """Which fields a rule is for. All are globs; an empty `tag` or `project` asks for none."""

    entity: str = ANY
    field: str = ANY
    tag: str = ""
    project: str = ""

    def covers(self, entity: str, field: str, tags: frozenset[str], project: str | None) -> bool:
        """Return whether a field of a record with these tags and this project (None: unknown) is meant."""
        return (
            fnmatchcase(entity, self.entity)
            and fnmatchcase(field, self.field)
            and (not self.tag or any(fnmatchcase(tag, self.tag) for tag in tags))
            and (not self.project or (project is not None and fnmatchcase(project, self.project)))
        )

    def text(self) -> str:
        """Return the match as a person reads it."""
        parts = [f"{self.entity}.{self.field}"]
        parts += [f"tag={self.tag}"] if self.tag else []
        parts += [f"project={self.project}"] if self.project else []
        return " ".join(parts)


class Plugin(NamedTuple):
    """A plug-in file beside its policy, and the SHA-256 (hex) of what it must contain."""

    name: str
    path: Path
    sha256: str


class Rule(NamedTuple):
    """One rule. `source` is `file:line`; `layer` where that file lies.

    lock      no layer below may override it
    override  it goes before an unlocked rule of a layer above
    per       "record": latest_wins takes all its fields from one side
    plugin, fallback   of `custom`: what is asked, and the built-in that decides when it has no answer
    """

    match: Match
    strategy: str
    source: str
    line: int
    layer: str = "user"
    clash: str = "latest"
    per: str = "field"
    lock: bool = False
    override: bool = False
    plugin: Plugin | None = None
    fallback: str = "merge_fields"


class Delete(NamedTuple):
    """What holds when one side deleted a record and the other changed it."""

    policy: str
    source: str
    lock: bool = False


class Policy(NamedTuple):
    """One policy file. `default` is its rule for what no other matches; None leaves that to the layers below.

    `sha256` is that of the file's bytes; `pins` maps the plug-ins that it vouches for to their SHA-256.
    """

    name: str
    version: int
    source: str
    layer: str
    sha256: str
    rules: tuple[Rule, ...] = ()
    default: Rule | None = None
    delete: Delete | None = None
    pins: Mapping[str, str] = MappingProxyType({})

    def find(self, entity: str, field: str, tags: frozenset[str], project: str | None) -> Rule | None:
        """Return the first rule that matches, else the file's default."""
        for rule in self.rules:
            if rule.match.covers(entity, field, tags, project):
                return rule
        return self.default
