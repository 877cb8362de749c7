"""Conflict policies: files that an admin writes, the layers they form, and the rule that decides a field.

A policy chooses; it never resolves (conflict.py does) and never runs code (sync/plugins.py does). What is broken or
could have been written by somebody else never takes force.
"""

from metricsd.policy.layers import InForce, Layers, load, read_policy
from metricsd.policy.lint import Finding, lint, lint_file, read_plugin
from metricsd.policy.parse import FILE_BYTES_MAX, Mistake, examine, parse
from metricsd.policy.rules import (
    BUILT_IN,
    CLASHES,
    DELETES,
    STRATEGIES,
    Delete,
    Match,
    Plugin,
    Policy,
    Rule,
)
from metricsd.policy.trust import find_weakness
from metricsd.policy_places import LAYERS, Places, places_of, tenant_file

__all__ = [
    "BUILT_IN",
    "CLASHES",
    "DELETES",
    "FILE_BYTES_MAX",
    "LAYERS",
    "STRATEGIES",
    "Delete",
    "Finding",
    "InForce",
    "Layers",
    "Match",
    "Mistake",
    "Places",
    "Plugin",
    "Policy",
    "Rule",
    "examine",
    "find_weakness",
    "lint",
    "lint_file",
    "load",
    "parse",
    "places_of",
    "read_plugin",
    "read_policy",
    "tenant_file",
]
