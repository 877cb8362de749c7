"""What lint finds, with the line of the rule, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricsd.fields import ENTITIES
from metricsd.policy import lint, lint_file, parse
from metricsd.policy_places import FOLDER
from metricsd.resources import data_folder
from tests.policy.support import example_plugin, policy_text, put, rule

SHIPPED = sorted(data_folder(FOLDER).glob("*.toml"))


def findings(*rules: str, default: str = "") -> list[tuple[str, str, int]]:
    """Return (severity, code, line) of each finding."""
    found = lint(parse(policy_text(*rules, default=default), "x.toml"))
    return [(one.severity, one.code, one.line) for one in found]


def test_a_good_policy_has_no_findings() -> None:
    """Exceptions before the rule, patterns, tags and projects are all fine."""
    assert not findings(
        rule("merge_fields", field="tags", extra='clash = "union"'),
        rule("merge_fields", field="*_ms", extra='clash = "max"'),
        '[[rule]]\nmatch = { project = "web-*" }\nstrategy = "remote_wins"',
        '[[rule]]\nmatch = { tag = "x", project = "web-shop" }\nstrategy = "latest_wins"'.replace("web-shop", "api"),
        rule("latest_wins"),
        default="remote_wins",
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (rule("latest_wins"), rule("remote_wins", field="tags")),
        (rule("latest_wins", field="t*"), rule("remote_wins", field="ta*s")),
        (rule("latest_wins", field="t?gs"), rule("remote_wins", field="tags")),
        (rule("latest_wins", field="tags"), rule("remote_wins", field="tags")),
        ('[[rule]]\nstrategy = "latest_wins"\n\n\n', rule("remote_wins", field="tags")),
        (rule("latest_wins"), '[[rule]]\nmatch = { entity = "session", tag = "x" }\nstrategy = "remote_wins"'),
    ],
)
def test_a_rule_behind_a_wider_one_is_unreachable(first: str, second: str) -> None:
    """The line is that of the rule that never applies."""
    assert ("error", "unreachable", 8) in findings(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (rule("latest_wins", field="ta*"), rule("remote_wins", field="t*")),
        (rule("latest_wins", field="t?"), rule("remote_wins", field="t*")),
        ('[[rule]]\nmatch = { tag = "x" }\nstrategy = "latest_wins"', rule("remote_wins")),
        (rule("latest_wins", entity="tool_metric"), rule("remote_wins")),
    ],
)
def test_a_wider_rule_behind_a_narrow_one_is_reachable(first: str, second: str) -> None:
    """An exception first, the rule after it: that is how policies are written."""
    assert not [one for one in findings(first, second) if one[1] == "unreachable"]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (rule("latest_wins", entity="sesion"), ("error", "unknown")),
        (rule("latest_wins", entity="session_counters"), ("error", "unknown")),
        (rule("latest_wins", field="tgas"), ("error", "unknown")),
        (rule("latest_wins", field="execution_count"), ("error", "unknown")),
        (rule("latest_wins", entity="tool_metric", field="average_duration_ms"), ("error", "unknown")),
        (rule("merge_fields", field="description", extra='clash = "sum_delta"'), ("error", "type")),
        (rule("merge_fields", field="started_at", extra='clash = "sum_delta"'), ("error", "type")),
        (rule("merge_fields", field="description", extra='clash = "max"'), ("error", "type")),
        (rule("merge_fields", field="score", extra='clash = "union"'), ("error", "type")),
        (rule("merge_fields", field="d*n", extra='clash = "min"'), ("error", "type")),
        (rule("merge_fields", extra='clash = "max"'), ("warning", "type")),
        (rule("remote_wins", extra='clash = "max"'), ("warning", "useless")),
        (rule("local_wins"), ("warning", "converge")),
        (rule("merge_fields", extra='clash = "local"'), ("warning", "converge")),
    ],
)
def test_findings(text: str, finding: tuple[str, str]) -> None:
    """One wrong rule, one finding of this kind, on its line."""
    assert [(*finding, 3)] == findings(text)


def test_local_wins_as_default_does_not_converge_by_itself() -> None:
    """Two devices under it overwrite each other: said on the line of the default."""
    assert findings(default="local_wins") == [("warning", "converge", 2)]


def test_a_plug_in_is_looked_at_and_not_run(tmp_path: Path) -> None:
    """Missing, another hash, open to others: each is found; the shipped example is fine in a private folder."""
    code, sha256 = example_plugin()
    text = rule("custom", field="description", extra=f'plugin = "p.py"\nsha256 = "{sha256}"\nfallback = "merge_fields"')
    file = put(tmp_path / "x.toml", policy_text(text))

    def messages() -> list[str]:
        return [f"{one.code}: {one.message}" for one in lint_file(file)[1]]

    assert "cannot be read" in messages()[0]
    put(tmp_path / "p.py", "raise SystemExit\n")
    assert "has sha256" in messages()[0]
    put(tmp_path / "p.py", code)
    assert messages() == []
    (tmp_path / "p.py").chmod(0o666)
    assert "is refused" in messages()[0]
    put(tmp_path / "p.py", code + "#" * 300_000)
    assert "larger than" in messages()[0]


def test_a_file_that_cannot_be_read_or_parsed_is_a_finding(tmp_path: Path) -> None:
    """Lint never raises for what it is there to find."""
    assert [one.code for one in lint_file(tmp_path / "none.toml")[1]] == ["permission"]
    assert [(one.code, one.line) for one in lint_file(put(tmp_path / "x.toml", "\nversion = 'x'"))[1]] == [
        ("syntax", 2)
    ]
    (tmp_path / "x.toml").chmod(0o602)
    assert [one.code for one in lint_file(tmp_path / "x.toml")[1]] == ["permission"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_policies_are_good(file: Path) -> None:
    """One file a strategy, without errors; only local_wins has the warning that its README explains."""
    policy, found = lint_file(file, layer="shipped")
    assert policy is not None
    assert policy.name == file.stem
    assert [one for one in found if one.severity == "error" and one.code != "plugin"] == []
    assert [one.code for one in found if one.severity == "warning"] == (
        ["converge"] if file.stem == "local_wins" else []
    )


def test_one_file_is_shipped_for_each_strategy() -> None:
    """The example of `custom` pins the plug-in that lies beside it."""
    assert [file.stem for file in SHIPPED] == [
        "custom_example",
        "latest_wins",
        "local_wins",
        "merge_fields",
        "remote_wins",
    ]
    policy, _ = lint_file(data_folder(FOLDER) / "custom_example.toml", layer="shipped")
    assert policy is not None
    assert policy.rules[0].plugin is not None
    assert policy.rules[0].plugin.sha256 == example_plugin()[1]


def test_the_default_policy_names_every_field_of_sessions_and_tool_metrics() -> None:
    """A field of these two never falls to the file's default by oversight; its clash rule fits its kind."""
    policy, _ = lint_file(data_folder(FOLDER) / "merge_fields.toml", layer="shipped")
    assert policy is not None
    named = {(one.match.entity, one.match.field) for one in policy.rules}
    for entity in ("session", "tool_metric"):
        assert {name for kind, name in named if kind == entity} == set(ENTITIES[entity])
    wanted = {
        "text": {"latest"},
        "list": {"union"},
        "time": {"min", "max"},
        "count": {"max", "sum_delta"},
        "flag": {"latest"},
    }
    for one in policy.rules:
        field = ENTITIES[one.match.entity].get(one.match.field)
        if field is not None and field.kind in wanted:
            assert one.clash in wanted[field.kind], one.source
