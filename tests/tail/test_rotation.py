"""Rotation that is faster than the daemon: looks, and a kill, at every moment between its steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from metricsd.config import Tail as Settings
from tests.fakes import FakeClock
from tests.tail.conftest import Rig

GENERATIONS = 3
STEPS = 4 * GENERATIONS + 2


def rotate_fast(rig: Rig, after_step: Callable[[int], None]) -> list[int]:
    """Write and rotate three generations by shifting names, as logrotate does; return the numbers that were written.

    The writer of the oldest one writes a last line into it when all is done.
    """
    path = rig.shared(rig.line(0))
    rig.tick()
    names = [path, *(path.with_name(f"{path.name}.{age}") for age in range(1, GENERATIONS + 1))]
    step = 0

    def done() -> None:
        nonlocal step
        after_step(step)
        step += 1

    with path.open("ab") as late:
        for number in range(1, GENERATIONS + 1):
            rig.shared(rig.line(number))
            done()
            for age in range(GENERATIONS - 1, -1, -1):
                if names[age].exists():
                    names[age].rename(names[age + 1])
                done()
        rig.shared(rig.line(GENERATIONS + 1))
        done()
        late.write(rig.line(GENERATIONS + 2))
    done()
    return list(range(GENERATIONS + 3))


@pytest.mark.parametrize("killed", [False, True])
def test_looks_between_the_steps_of_a_rotation_lose_no_generation(killed: bool, tmp_path: Path) -> None:
    """Any two looks between the steps; a file is known by what it is, not by the name that it had at the last look."""
    for first, second in combinations(range(STEPS), 2):
        folder = tmp_path / f"{first}-{second}"
        folder.mkdir()
        rig = Rig(folder, FakeClock(), Settings())

        def look(step: int, rig: Rig = rig, moments: tuple[int, int] = (first, second)) -> None:
            if step in moments:
                rig.tick()
            if killed and step == moments[1]:
                rig.restart()

        wanted = rotate_fast(rig, look)
        rig.tick()
        assert rig.durations == wanted, f"looks after steps {first} and {second}"
        rig.close()
