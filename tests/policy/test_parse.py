"""A policy's text is hostile until it is parsed; every mistake is named with its line and what was expected."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.conflict import Clash, DeleteRule, Strategy
from metricsd.errors import EXIT_USAGE, PolicyError
from metricsd.policy import CLASHES, DELETES, FILE_BYTES_MAX, STRATEGIES, examine, parse

GOOD = """\
version = 3
name = "team"
default = "latest_wins"
lock = true

[delete]
policy = "edit_wins"

[plugins]
"other.py" = "{sha}"

[[rule]]
match = {{ entity = "session", field = "tags", tag = "x*", project = "web-*" }}
strategy = "merge_fields"
clash = "union"
lock = true

[[rule]]
strategy = "custom"
plugin = "mine.py"
sha256 = "{sha}"
fallback = "remote_wins"
override = true
""".format(sha="A" * 64)


def test_a_good_file_becomes_its_policy() -> None:
    """Every key arrives where it belongs, with the line that it came from."""
    found = parse(GOOD, "/p/team.toml", layer="system")
    assert (found.name, found.version, found.layer) == ("team", 3, "system")
    assert found.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert found.default is not None
    assert (found.default.strategy, found.default.lock, found.default.source) == ("latest_wins", True, "/p/team.toml:3")
    assert found.delete is not None
    assert (found.delete.policy, found.delete.source) == ("edit_wins", "/p/team.toml:7")
    assert found.pins == {"other.py": "a" * 64}
    first, second = found.rules
    assert first.match.text() == "session.tags tag=x* project=web-*"
    assert (first.clash, first.lock, first.source) == ("union", True, "/p/team.toml:12")
    assert second.plugin is not None
    assert (second.plugin.path.as_posix(), second.plugin.sha256) == ("/p/mine.py", "a" * 64)
    assert (second.fallback, second.override, second.line) == ("remote_wins", True, 18)


def test_the_words_are_those_of_the_resolver() -> None:
    """A policy cannot name a strategy that conflict.py does not have, or miss one that it has."""
    assert list(STRATEGIES) == [one.value for one in Strategy]
    assert list(CLASHES) == [one.value for one in Clash]
    assert list(DELETES) == [one.value for one in DeleteRule]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "version: expected a whole number from 1"),
        ("version = 0", 1, "not 0"),
        ("version = true", 1, "version: expected a whole number"),
        ("version = 1\ndefault = 'best_wins'", 2, "expected one of local_wins, remote_wins, latest_wins, merge_fields"),
        ("version = 1\ndefault = 'custom'", 2, "not 'custom'"),
        ("version = 1\nlock = true", 2, "no default"),
        ("version = 1\ncolour = 1", 2, "'colour': unknown key"),
        ("version = 1\ndelete = 'edit_wins'", 2, "written as [delete]"),
        ("version = 1\n[delete]\npolicy = 'never'", 3, "expected one of delete_wins, edit_wins, latest_wins"),
        ("version = 1\nrule = 5", 2, "written as [[rule]]"),
        ("version = 1\n[[rule]]\nclash = 'max'", 2, "strategy: expected one of"),
        ("version = 1\n[[rule]]\nstrategy = 'merge_fields'\nclash = 'average'", 4, "clash: expected one of"),
        ("version = 1\n\n[[rule]]\nstrategy = 'merge_fields'\nlock = 'yes'", 5, "lock: expected true or false"),
        ("version = 1\n[[rule]]\nstrategy = 'merge_fields'\nmatch = 'session'", 4, "rule.match: expected a table"),
        ("version = 1\n[[rule]]\nstrategy = 'merge_fields'\nmatch = { entity = 3 }", 4, "rule.match.entity: expected"),
        ("version = 1\n[[rule]]\nstrategy = 'merge_fields'\nmatch = { who = 'me' }", 4, "'who': unknown key"),
        ("version = 1\n[[rule]]\nstrategy = 'merge_fields'\nmatch = { field = '*********' }", 4, "at most 8 '*'"),
        ("version = 1\n[[rule]]\nstrategy = 'merge_fields'\nper = 'record'", 4, "latest_wins alone"),
        ("version = 1\n[[rule]]\nstrategy = 'local_wins'\nfallback = 'remote_wins'", 4, "only strategy = 'custom'"),
        (
            "version = 1\n[[rule]]\nstrategy = 'custom'\nplugin = 'a.py'\nsha256 = 'x'\nfallback = 'local_wins'",
            5,
            "SHA-256",
        ),
        (
            f"version = 1\n[[rule]]\nstrategy = 'custom'\nplugin = '../a.py'\nsha256 = '{'0' * 64}'\nfallback = 'local_wins'",
            4,
            "beside this one",
        ),
        ("version = 1\n[plugins]\n'a.py' = 'short'", 3, "64 hexadecimal digits"),
        ('version = 1\nname = "a\\u001b[2J"', 2, "name: expected text"),
        ("version = 1\nname = ", 2, "not valid TOML"),
        ("version = 1\n[[rule]\n", 2, "not valid TOML"),
        ("version = 1\nx = " + "[" * 5000, 2, "not valid TOML"),
        ("version = 1\nx = " + "9" * 5000, 2, "not valid TOML"),
        ("version = 0x" + "f" * 5000, 1, "such a large number"),
        ("version = 1979-05-27", 1, "not a date"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int, message: str) -> None:
    """File, line, key and what was expected, as a usage error."""
    with pytest.raises(PolicyError) as raised:
        parse(text, "/p/x.toml")
    assert str(raised.value).startswith(f"/p/x.toml:{line}: ")
    assert message in str(raised.value)
    assert raised.value.exit_code == EXIT_USAGE


def test_a_custom_rule_without_a_fallback_is_a_mistake() -> None:
    """Something must decide when the plug-in cannot."""
    text = f"version = 1\n[[rule]]\nstrategy = 'custom'\nplugin = 'a.py'\nsha256 = '{'0' * 64}'"
    policy, mistakes = examine(text, "x.toml")
    assert policy is None
    assert [(one.line, one.message.split(":")[0]) for one in mistakes] == [(2, "rule.fallback")]


def test_a_tenants_rule_needs_no_pin_of_its_own() -> None:
    """The device vouches for plug-ins; a tenant's policy may name one without saying its hash."""
    text = "version = 1\n[[rule]]\nstrategy = 'custom'\nplugin = 'a.py'\nfallback = 'remote_wins'"
    assert parse(text, "t.toml", layer="tenant").rules[0].plugin is not None
    with pytest.raises(PolicyError):
        parse(text, "t.toml", layer="user")


def test_every_mistake_is_found_at_once() -> None:
    """Lint does not make people fix one line after the other."""
    text = "version = 'x'\n[[rule]]\nstrategy = 1\n[[rule]]\nstrategy = 'local_wins'\nbad = 1\n"
    _, mistakes = examine(text, "x.toml")
    assert [one.line for one in mistakes] == [1, 3, 6]
    with pytest.raises(PolicyError, match="and 2 more"):
        parse(text, "x.toml")


def test_lines_are_found_behind_long_strings() -> None:
    """A `[[rule]]` inside a text is no rule."""
    text = 'version = 1\ndescription = """\n[[rule]]\nstrategy = 1\n"""\n[[rule]]\nstrategy = "local_wins"\n'
    assert parse(text, "x.toml").rules[0].line == 6


def test_limits() -> None:
    """Size and number of rules are bounded."""
    with pytest.raises(PolicyError, match="bytes"):
        parse("#" * (FILE_BYTES_MAX + 1), "x.toml")
    with pytest.raises(PolicyError, match="at most 500"):
        parse("version = 1\n" + "[[rule]]\nstrategy = 'local_wins'\n" * 501, "x.toml")
    with pytest.raises(PolicyError, match="UTF-8"):
        parse(b"version = 1\n# \xff", "x.toml")


scalars = st.one_of(
    st.integers(), st.text(max_size=8), st.booleans(), st.floats(), st.sampled_from([*STRATEGIES, *CLASHES, *DELETES])
)
words = st.sampled_from(
    ["version", "name", "default", "lock", "delete", "plugins", "rule", "match", "strategy", "clash", "policy", "entity",
     "field", "plugin", "sha256", "fallback", "per", "override", "a.py", "weird"]
)  # fmt: skip
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)


def toml_of(value: object) -> str:
    """Return a value as TOML writes it inline."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(f"\\U{ord(char):08X}" for char in value) + '"'
        case list():
            return "[" + ", ".join(map(toml_of, value)) + "]"
        case dict():
            return "{" + ", ".join(f'"{key}" = {toml_of(inner)}' for key, inner in value.items()) + "}"
        case _:
            return str(value)


@given(st.dictionaries(words, trees, max_size=6))
def test_any_document_is_a_policy_or_has_mistakes(document: dict[str, object]) -> None:
    """Whatever stands where, parsing ends with a policy or with lines that lie in the file."""
    text = "\n".join(f'"{key}" = {toml_of(value)}' for key, value in document.items())
    policy, mistakes = examine(text, "x.toml")
    assert (policy is None) == bool(mistakes)
    assert all(1 <= one.line <= text.count("\n") + 1 and one.message.isprintable() for one in mistakes)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_any_bytes_are_a_policy_or_have_mistakes(raw: bytes | str) -> None:
    """Noise is refused with a line, never with a crash."""
    policy, mistakes = examine(raw, "x.toml")
    assert (policy is None) == bool(mistakes)
