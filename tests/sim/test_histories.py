"""Seeded histories of devices and a cloud keep every invariant, and every seeded bug is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.bugs import BUGS, Bug
from tests.sim.history import play
from tests.sim.replay import main

HISTORIES = 10_000
PARTS = 4
HISTORIES_SOAK = 1_000_000
KILL_SEEDS = 6_000
SEEDS_FILE = Path(__file__).with_name("seeds.txt")


def kept_seeds() -> list[int]:
    """Return the seeds that once failed."""
    lines = SEEDS_FILE.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def judge(seeds: range | list[int]) -> None:
    """Play seeds; fail with one line that replays the first that does not hold."""
    for seed in seeds:
        violation = play(seed)
        assert violation is None, (
            f"python -m tests.sim.replay {seed}   # {violation}; keep the seed in {SEEDS_FILE.name}"
        )


def test_seeds_that_once_failed_hold() -> None:
    """What was found once stays fixed."""
    assert len(kept_seeds()) >= 8
    judge(kept_seeds())


@pytest.mark.parametrize("part", range(PARTS))
def test_histories_hold(part: int) -> None:
    """Nothing lost, nothing doubled, all equal after quiet, deletions and later edits stand, conflicts are logged."""
    size = HISTORIES // PARTS
    judge(range(part * size, (part + 1) * size))


@pytest.mark.soak
def test_a_million_histories_hold() -> None:
    """The same for as long as a coffee takes."""
    judge(range(HISTORIES, HISTORIES_SOAK))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: str(bug.name))
def test_a_seeded_bug_is_found(bug: Bug) -> None:
    """A simulator that lets a bug live proves nothing."""
    assert any(play(seed, bug) is not None for seed in range(KILL_SEEDS)), f"{bug.name} lived for {KILL_SEEDS} seeds"


def test_replay_says_what_did_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """A bug's seed prints one line and exits 1; a sound one says so and exits 0."""
    seed = next(seed for seed in range(KILL_SEEDS) if play(seed, BUGS[1]) is not None)
    assert main([str(seed), "--bug", BUGS[1].name]) == 1
    assert capsys.readouterr().out.startswith(f"{seed}: ")
    assert main([str(seed)]) == 0
    assert capsys.readouterr().out == "every invariant held\n"
