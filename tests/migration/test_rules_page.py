"""docs/migration-rules.md is the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

from metricsd.migration import validate
from metricsd.migration.rules import RULES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migration-rules.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (\w+) \| (.+?) \| (.+?) \| (.+?) \|$", re.M)


def table() -> str:
    """Return the page's table as it must be."""
    return "\n".join(
        f"| `{rule.id}` | {rule.scope} | {rule.kind} | {rule.severity} | {rule.what} | {rule.why} | {rule.fix} |"
        for rule in RULES
    )


def test_the_page_has_every_rule_with_its_words_and_no_other() -> None:
    """In the order in which they are applied; `python -m tests.migration.test_rules_page` prints the table."""
    assert "\n".join(found[0] for found in ROW.finditer(PAGE)) == table()


def test_the_page_says_the_gates_and_the_formula_as_they_are() -> None:
    """Numbers in the text are those of the code."""
    assert f"over {validate.PAUSE_SHARE:.0%}".replace("%", " %") in PAGE
    assert f"over {validate.STOP_SHARE:.0%}".replace("%", " %") in PAGE
    assert "100 x (1 - (rejected + flagged / 2) / source)" in PAGE
    assert validate.FLAGGED_WEIGHT == 1 / 2
    assert f"{len(RULES)} rules" in PAGE


if __name__ == "__main__":
    print(table())
