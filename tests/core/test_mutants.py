"""The list of seeded bugs stays true: `make mutants` runs it whole, which takes minutes."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutants_text_and_test_are_there(mutant: Mutant) -> None:
    """What it replaces occurs once, and the test that must notice it exists."""
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    path, *names = mutant.test.split("::")
    text = (ROOT / path).read_text()
    assert f"def {names[-1]}(" in text
    assert len(names) == 1 or f"class {names[0]}" in text


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    """Fifteen at least."""
    assert len({(mutant.file, mutant.new) for mutant in MUTANTS}) == len(MUTANTS) >= 15
