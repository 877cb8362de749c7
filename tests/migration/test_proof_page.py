"""docs/migration-proof.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from metricsd.migration.compare import Matched
from metricsd.migration.confidence import LEVEL, SENSITIVITY_MIN, floor_percent, lower_bound
from metricsd.migration.report import ERRORS, HTML, JSON, errors
from metricsd.migration.sensitivity.faults import KINDS
from metricsd.migration.sensitivity.measure import FAULTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migration-proof.md").read_text()


def test_every_kind_of_fault_is_named_with_its_stage() -> None:
    """And no other."""
    rows = dict(re.findall(r"^\| (parse|transform|load|target) \| (.+) \|$", PAGE, re.M))
    named = [(stage, name.strip()) for stage, names in rows.items() for name in names.split(",")]
    assert named == [(kind.stage, kind.name) for kind in KINDS]
    assert len(KINDS) == 20
    assert f"{FAULTS:,} faults" in PAGE


def test_every_fate_of_a_row_is_explained() -> None:
    """By its name in the report."""
    for field in msgspec.structs.fields(Matched):
        assert f"`{field.name}`" in PAGE or field.name == "ours"


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    """Level, bound, limit, and the files of the report."""
    assert f"at {LEVEL:.0%}".replace("%", " %") in PAGE
    assert f"below {SENSITIVITY_MIN:.0%}".replace("%", " %") in PAGE
    assert f"{floor_percent(lower_bound(FAULTS, FAULTS)):.2f} %" in PAGE
    assert all(f"`{name}`" in PAGE for name in (HTML, JSON, ERRORS))


def test_a_line_of_errors_has_the_fields_that_the_page_lists(tmp_path: Path) -> None:
    """In their order."""
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text('{"entry":"reject","code":"nul","file":"a","line":1}\n')
    row = next(errors(ledger))
    listed = PAGE.partition("`errors.jsonl` | ")[2].partition("|")[0]
    assert list(row) == [name for name in re.findall(r"`(\w+)`", listed) if name in row]
    assert all(f"`{name}`" in listed for name in row)
