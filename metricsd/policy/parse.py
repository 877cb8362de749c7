"""Reads a policy file: TOML text in, a `Policy` out, or every mistake with its line and what was expected.

The text may come from a team's cloud, so it is hostile until it is parsed: its size, its rules and its patterns are
bounded, and nothing in it can be code.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from metricsd.errors import PolicyError
from metricsd.policy.rules import (
    ANY,
    BUILT_IN,
    CLASHES,
    DELETES,
    SCOPES,
    STRATEGIES,
    Delete,
    Match,
    Plugin,
    Policy,
    Rule,
)
from metricsd.policy.toml_lines import Lines

FILE_BYTES_MAX = 256 * 1024
RULES_MAX = 500
GLOB_CHARS_MAX = 200
GLOB_STARS_MAX = 8
"""More make matching slow, and nobody can read them."""
VERSION_MAX = 2**31 - 1
NAME_CHARS_MAX = 100

_is_plugin = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.py").fullmatch
_is_sha256 = re.compile(r"[0-9a-f]{64}").fullmatch
_ERROR_LINE = re.compile(r"\(at line (\d+), column \d+\)")
_TOP = ("version", "name", "description", "default", "lock", "delete", "plugins", "rule")
_RULE = ("match", "strategy", "clash", "per", "lock", "override", "plugin", "sha256", "fallback", "description")
_MATCH = ("entity", "field", "tag", "project")
_DELETE = ("policy", "lock")


class Mistake(NamedTuple):
    """One thing that is wrong in a file."""

    line: int
    message: str


def parse(text: str | bytes, source: str | Path, *, layer: str = "user") -> Policy:
    """Return the policy in a file's text; raise PolicyError that names file, line, key and what was expected."""
    policy, mistakes = examine(text, source, layer=layer)
    if policy is None:
        more = f" (and {len(mistakes) - 1} more: `metricsd policy lint` lists them)" if len(mistakes) > 1 else ""
        raise PolicyError(f"{source}:{mistakes[0].line}: {mistakes[0].message}{more}")
    return policy


def examine(text: str | bytes, source: str | Path, *, layer: str = "user") -> tuple[Policy | None, list[Mistake]]:
    """Return the policy, or None with every mistake in the order of their lines."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > FILE_BYTES_MAX:
        return None, [Mistake(1, f"{len(raw)} bytes, more than {FILE_BYTES_MAX}: expected a shorter file")]
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, [Mistake(raw[: error.start].count(b"\n") + 1, "not UTF-8: save the file as UTF-8")]
    try:
        document = tomllib.loads(decoded)
    except (ValueError, RecursionError) as error:
        found = _ERROR_LINE.search(str(error))
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        return None, [Mistake(int(found[1]) if found else decoded.count("\n") + 1, f"not valid TOML: {reason}")]
    reader = _Reader(str(source), layer, Lines(decoded))
    policy = reader.policy(document, hashlib.sha256(raw).hexdigest())
    mistakes = sorted(reader.mistakes)
    return (None if mistakes else policy), mistakes


class _Reader:
    """Turns the document into values, noting mistakes instead of stopping at the first."""

    def __init__(self, source: str, layer: str, lines: Lines) -> None:
        self.source = source
        self.layer = layer
        self.lines = lines
        self.mistakes: list[Mistake] = []

    def policy(self, document: dict[str, Any], sha256: str) -> Policy:
        """Return the policy; it counts only if no mistake was noted."""
        line_of = self.lines.top
        self.known(document, _TOP, "", line_of)
        version = document.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION_MAX:
            self.wrong(line_of("version"), "version", f"a whole number from 1 to {VERSION_MAX}", version)
            version = 0
        name = self.text(document, "name", line_of) or Path(self.source).stem
        self.text(document, "description", line_of)
        lock = self.flag(document, "lock", line_of)
        pins = self.pins(document.get("plugins", {}))
        default = None
        if "default" in document:
            strategy = self.choice(document, "default", BUILT_IN, line_of)
            default = self.rule_at(line_of("default"), Match(), strategy)._replace(lock=lock)
        elif lock:
            self.mistakes.append(Mistake(line_of("lock"), "lock: there is no default that it could lock"))
        rules = self.rules(document.get("rule", []), pins)
        delete = self.delete(document["delete"]) if "delete" in document else None
        return Policy(name, version, self.source, self.layer, sha256, rules, default, delete, MappingProxyType(pins))

    def rule_at(self, line: int, match: Match, strategy: str) -> Rule:
        return Rule(match, strategy, f"{self.source}:{line}", line, self.layer)

    def pins(self, body: Any) -> dict[str, str]:
        """Return `[plugins]`: file names and the SHA-256 that each must have."""
        if not isinstance(body, dict):
            self.wrong(self.lines.top("plugins"), "plugins", "a table of file names and SHA-256 sums", body)
            return {}
        pins = {}
        for name, sha256 in body.items():
            line = self.lines.table("plugins", name)
            if not _is_plugin(name):
                self.wrong(line, f"plugins.{name[:80]!r}", "the name of a .py file beside this one", name)
            elif not isinstance(sha256, str) or not _is_sha256(sha256.lower()):
                self.wrong(line, f"plugins.{name}", "a SHA-256 of 64 hexadecimal digits", sha256)
            else:
                pins[name] = sha256.lower()
        return pins

    def delete(self, body: Any) -> Delete | None:
        if not isinstance(body, dict):
            self.wrong(self.lines.top("delete"), "delete", "a table, written as [delete]", body)
            return None

        def line_of(key: str) -> int:
            return self.lines.table("delete", key)

        self.known(body, _DELETE, "delete.", line_of)
        lock = self.flag(body, "lock", line_of)
        policy = self.choice(body, "policy", DELETES, line_of)
        return Delete(policy, f"{self.source}:{line_of('policy')}", lock)

    def rules(self, body: Any, pins: Mapping[str, str]) -> tuple[Rule, ...]:
        if not isinstance(body, list) or not all(isinstance(item, dict) for item in body):
            self.wrong(self.lines.top("rule"), "rule", "tables, each written as [[rule]]", body)
            return ()
        if len(body) > RULES_MAX:
            self.mistakes.append(Mistake(1, f"rule: {len(body)} rules, expected at most {RULES_MAX}"))
            return ()
        return tuple(self.rule(number, item, pins) for number, item in enumerate(body))

    def rule(self, number: int, body: dict[str, Any], pins: Mapping[str, str]) -> Rule:
        def line_of(key: str) -> int:
            return self.lines.rule(number, key)

        self.known(body, _RULE, "rule.", line_of)
        self.text(body, "description", line_of)
        strategy = self.choice(body, "strategy", STRATEGIES, line_of)
        match = self.match(body.get("match", {}), line_of("match"))
        clash = self.choice(body, "clash", CLASHES, line_of) if "clash" in body else "latest"
        per = self.choice(body, "per", SCOPES, line_of) if "per" in body else "field"
        rule = self.rule_at(line_of(""), match, strategy)._replace(
            clash=clash, per=per, lock=self.flag(body, "lock", line_of), override=self.flag(body, "override", line_of)
        )
        if per == "record" and strategy != "latest_wins":
            self.mistakes.append(Mistake(line_of("per"), "rule.per: 'record' is for latest_wins alone"))
        if strategy == "custom":
            return self.custom(rule, body, pins, line_of)
        for key in ("plugin", "sha256", "fallback"):
            if key in body:
                self.mistakes.append(Mistake(line_of(key), f"rule.{key}: only strategy = 'custom' has one"))
        return rule

    def custom(self, rule: Rule, body: dict[str, Any], pins: Mapping[str, str], line_of: Any) -> Rule:
        name, fallback = body.get("plugin"), rule.fallback
        if not isinstance(name, str) or not _is_plugin(name):
            self.wrong(line_of("plugin"), "rule.plugin", "the name of a .py file beside this one", name)
            name = ""
        sha256 = body.get("sha256", pins.get(name))
        if sha256 is None and self.layer == "tenant":
            # The device vouches for it: the pin of its own policies is taken.
            sha256 = ""
        elif not isinstance(sha256, str) or not _is_sha256(sha256.lower()):
            self.wrong(line_of("sha256"), "rule.sha256", "the plug-in's SHA-256 (64 hexadecimal digits)", sha256)
            sha256 = ""
        if "fallback" in body:
            fallback = self.choice(body, "fallback", BUILT_IN, line_of)
        else:
            self.wrong(line_of(""), "rule.fallback", f"with strategy = 'custom', one of {', '.join(BUILT_IN)}", None)
        plugin = Plugin(name, Path(self.source).absolute().parent / name, sha256.lower())
        return rule._replace(plugin=plugin, fallback=fallback)

    def match(self, body: Any, line: int) -> Match:
        if not isinstance(body, dict):
            self.wrong(line, "rule.match", "a table such as { entity = 'session', field = 'tags' }", body)
            return Match()
        self.known(body, _MATCH, "rule.match.", lambda _key: line)
        found = {}
        for key in _MATCH:
            value = body.get(key, ANY if key in ("entity", "field") else "")
            if key in body and not _is_glob(value):
                what = f"a name or a pattern of 1 to {GLOB_CHARS_MAX} characters with at most {GLOB_STARS_MAX} '*'"
                self.wrong(line, f"rule.match.{key}", what, value)
                value = ANY
            found[key] = value
        return Match(**found)

    def known(self, body: Mapping[str, Any], keys: tuple[str, ...], where: str, line_of: Any) -> None:
        for key in body:
            if key not in keys:
                message = f"{where}{key[:80]!r}: unknown key; expected one of {', '.join(keys)}"
                self.mistakes.append(Mistake(line_of(key), message))

    def flag(self, body: Mapping[str, Any], key: str, line_of: Any) -> bool:
        value = body.get(key, False)
        if not isinstance(value, bool):
            self.wrong(line_of(key), key, "true or false", value)
            return False
        return value

    def text(self, body: Mapping[str, Any], key: str, line_of: Any) -> str:
        value = body.get(key, "")
        longest = NAME_CHARS_MAX if key == "name" else FILE_BYTES_MAX
        if not isinstance(value, str) or (key == "name" and key in body and not _is_name(value)):
            self.wrong(line_of(key), key, f"text of 1 to {longest} characters on one line", value)
            return ""
        return value.strip()

    def choice(self, body: Mapping[str, Any], key: str, choices: tuple[str, ...], line_of: Any) -> str:
        value = body.get(key)
        if not isinstance(value, str) or value not in choices:
            self.wrong(line_of(key), key, f"one of {', '.join(choices)}", value)
            return choices[0]
        return value

    def wrong(self, line: int, key: str, expected: str, value: Any) -> None:
        self.mistakes.append(Mistake(line, f"{key}: expected {expected}, not {_shown(value)}"))


def _is_name(value: str) -> bool:
    # Printable, because it is shown on terminals and may come from a cloud.
    return 0 < len(value.strip()) <= NAME_CHARS_MAX and value.isprintable()


def _is_glob(value: Any) -> bool:
    fits = isinstance(value, str) and 0 < len(value) <= GLOB_CHARS_MAX and value.isprintable()
    return fits and value.count("*") <= GLOB_STARS_MAX


def _shown(value: Any) -> str:
    """Return a value for a message: short, and never one whose text costs."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return repr(value[:80])
        case int():
            return str(value) if abs(value) < 10**18 else "such a large number"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return f"a {type(value).__name__}"
