"""docs/security.md is held to the tests: each control has tests that exist, and none that is named after ASVS is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
_ROW = re.compile(r"^\| (S[0-9]+) \|(?:[^|]*\|){2}([^|]*)\|([^|]*)\| (\w+) \|$", re.MULTILINE)
_NAMED = re.compile(r"\btest_v([0-9]+)_([0-9]+)_([0-9]+)_\w+")


class Row(NamedTuple):
    """One control of the table."""

    control: str
    ids: list[str]
    tests: list[str]
    verdict: str


def rows() -> list[Row]:
    text = (ROOT / "docs" / "security.md").read_text()
    return [
        Row(control, [part.strip() for part in ids.split(",")], re.findall(r"`([^`]+::[^`]+)`", tests), verdict)
        for control, ids, tests, verdict in _ROW.findall(text)
    ]


def test_every_control_is_in_the_table() -> None:
    """S1 to S17, each once, with requirements, tests and a verdict."""
    assert [row.control for row in rows()] == [f"S{number}" for number in range(1, 18)]
    for row in rows():
        assert row.ids and row.tests, row.control
        assert row.verdict in ("pass", "fail"), row.control


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.control)
def test_its_tests_exist_and_run_everywhere(row: Row) -> None:
    """In the file that is named, as a function or under another name; a row that passes rests on no soak test."""
    for test in row.tests:
        file, _, name = test.partition("::")
        text = (TESTS / file).read_text()
        found = re.search(rf"^(?:(?:async )?def {name}\(|    test_\w+ as {name},)", text, re.MULTILINE)
        assert found, f"{row.control}: there is no {test}"
        above = text[: found.start()].rpartition("\n\n")[2]
        assert "mark.soak" not in above, f"{test} runs in soak alone"


def test_every_test_that_is_named_after_asvs_is_in_the_table() -> None:
    """Under the requirement that its name says."""
    listed = {(test.partition("::")[2], asvs) for row in rows() for test in row.tests for asvs in row.ids}
    for file in sorted(TESTS.glob("cloud/test_security*.py")):
        for found in _NAMED.finditer(file.read_text()):
            name, number = found[0], ".".join(found.groups())
            assert any(test == name for test, _ in listed), f"{name} is not in docs/security.md"
            assert (name, number) in listed or name.startswith("test_v4_2_1"), f"{name}: its row does not name {number}"


def test_every_requirement_has_a_test_that_is_named_after_it() -> None:
    """Except that of S9, which answers the API Top 10 and no single requirement of ASVS."""
    named = {".".join(found.groups()) for row in rows() for test in row.tests if (found := _NAMED.search(test))}
    assert {asvs for row in rows() for asvs in row.ids} - named == {"API10:2023"}
