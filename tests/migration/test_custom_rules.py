"""Rules of one's own: what they see, what they may say, and that a file which fails stops the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricsd.errors import UsageError
from metricsd.migration.custom_rules import CustomRules
from metricsd.migration.model import Severity
from metricsd.migration.validate import Validator
from tests.migration.rows_of import NOW_US, call, first, planned, summary, write

SECRET = "5ec2e7-not-to-be-seen"
RULES = """
RULES = {
    "slow_edit": {"what": "an edit takes at most a second", "why": "the disk is slow", "fix": "look at it"},
    "no_friday": {"what": "nobody works on Fridays", "severity": "hard"},
    "seen": {"what": "what a rule sees", "severity": "info"},
}

def check(row):
    if row["kind"] == "tool_used" and row["tool"] == "Edit" and row["duration_ms"] > 1000:
        yield "slow_edit", "duration_ms", "above 1 s"
    if row["kind"] == "session" and row["start"] // 86_400_000_000 % 7 == 1:
        yield "no_friday", "start", "a Friday"
    yield "seen", ",".join(sorted(row))[:50], str(len(repr(row)) < 2000)
"""


def file_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_rule_of_ones_own_fires_beside_the_shipped_ones(tmp_path: Path) -> None:
    """With its severity, at its row's place; a hard one counts as hard, and its words are among the run's rules."""
    lines = [call(execution_time_ms=1500), call(execution_time_ms=20, net_lines=9)]
    friday = [
        first(start="2026-11-20T18:59:05Z"),
        summary(end="2026-11-20T19:59:05Z", start_time="2026-11-20T18:59:05Z"),
    ]
    rows = planned(write(tmp_path / "source", lines, friday), tmp_path / "run")
    custom = CustomRules(file_of(tmp_path, RULES))
    try:
        validator = Validator(NOW_US, custom=[custom])
        found = [one for one in validator.check(rows) if one.rule != "seen"]
        assert {(one.rule, one.severity, one.place.line if one.place else 0) for one in found} == {
            ("lines_add_up", Severity.SOFT, 2),
            ("no_friday", Severity.HARD, 1),
            ("slow_edit", Severity.SOFT, 1),
        }
        assert validator.running.by_rule["slow_edit"] == 1
        assert validator.running.hard == 1
        assert validator.rules()["slow_edit"].fix == "look at it"
    finally:
        custom.close()


def test_a_rule_sees_what_the_store_keeps_and_no_content(tmp_path: Path) -> None:
    """Neither a command nor a path nor a token."""
    line = call(command=f"git push {SECRET}", file_path=f"/home/{SECRET}/a.py", auth_token=SECRET, error_message=SECRET)
    rows = planned(write(tmp_path / "source", [line]), tmp_path / "run")
    text = (
        RULES
        + f"""
def check(row):
    if {SECRET!r} in repr(row):
        yield "seen", "", "content"
    if row.get("subject") != "git":
        yield "seen", "", "no subject"
"""
    )
    custom = CustomRules(file_of(tmp_path, text))
    try:
        assert custom.check(rows) == []
    finally:
        custom.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RULES = {'a': {'what': 'x'}}\ndef check(row):\n    return 1 / 0\n", "raised ZeroDivisionError in line 3"),
        ("RULES = {'a': {'what': 'x'}}\ndef check(row):\n    while True: pass\n", "took longer than 300 ms"),
        ("RULES = {'a': {'what': 'x'}}\ndef check(row):\n    import os; os._exit(0)\n", "ended its process"),
        ("RULES = {'a': {'what': 'x'}}\ndef check(row):\n    return [('b', '', '')]\n", "names a rule 'b'"),
        ("RULES = {'a': {'what': 'x'}}\ndef check(row):\n    return [('a', 1, '')]\n", "in texts"),
    ],
)
def test_a_file_that_fails_stops_the_run(text: str, said: str, tmp_path: Path) -> None:
    """Rows that nobody looked at must not pass for good ones; the message says what to do."""
    rows = planned(write(tmp_path / "source", [call()]), tmp_path / "run")
    custom = CustomRules(file_of(tmp_path, text), limit_s=0.3)
    try:
        with pytest.raises(UsageError, match=said):
            custom.check(rows)
    finally:
        custom.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def check(row): pass\n", "a dictionary RULES"),
        ("RULES = {}\ndef check(row): pass\n", "1 to 100 rules"),
        ("RULES = {'lines_add_up': {'what': 'x'}}\ndef check(row): pass\n", "that no shipped rule has"),
        ("RULES = {'a b': {'what': 'x'}}\ndef check(row): pass\n", "is no name for a rule"),
        ("RULES = {'a': {'what': 'x', 'severity': 'deadly'}}\ndef check(row): pass\n", "deadly"),
        ("RULES = {'a': {}}\ndef check(row): pass\n", "what"),
        ("RULES = {\n", "SyntaxError in line 1"),
    ],
)
def test_a_file_that_is_none_is_refused_before_the_run(text: str, said: str, tmp_path: Path) -> None:
    """With the file's name and what a file of rules has."""
    with pytest.raises(UsageError, match=said) as caught:
        CustomRules(file_of(tmp_path, text))
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """As a conflict plug-in is: whoever writes it would run as the user."""
    path = file_of(tmp_path, RULES)
    path.chmod(0o664)
    with pytest.raises(UsageError, match="run chmod go-w"):
        CustomRules(path)
    with pytest.raises(UsageError, match="cannot be read"):
        CustomRules(tmp_path / "missing.py")
