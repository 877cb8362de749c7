"""Each single operation on the disk fails, once and for good, with an error of the device and with a full disk.

Whatever fails: the error is StoreUnavailable (the workload lets no other pass), nothing that was let go is missing,
the database is sound, and once the disk is well again everything is stored exactly once.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store import reference
from tests.store.disk import Disk, make_disk

FOR_GOOD = 1_000_000
PARTS = 4
ROUNDS = 4
POINTS_MIN = {("ioerr", False): 500, ("full", False): 300, ("ioerr", True): 680, ("full", True): 440}
"""By kind of fault and whether the store is new: 2,000 points at least, each operation once and for good."""
RANDOM_FAULTS_SOAK = 200_000


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of homes are made in it."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    reference.make_home(folder / "template")
    yield folder
    shutil.rmtree(folder)


def attempt(disk: Disk, folder: Path, at: int, kind: str, length: int, *, new: bool) -> tuple[int, int]:
    """Run the workload in a fresh home with one fault, then make it good; return operations and hits."""
    home = folder / "home"
    if new:
        (reference.paths_of(home).spool / "new").mkdir(parents=True, mode=0o700)
    else:
        shutil.copytree(folder / "template", home)
    with disk.mounted():
        disk.aim(at, kind=kind, length=length)
        wanted = reference.run(home, rounds=ROUNDS)
        found = disk.count, disk.hits
    reference.assert_exactly_once(home, wanted, old=not new, rejected=ROUNDS)
    shutil.rmtree(home)
    return found


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("new", [False, True], ids=["store exists", "first start"])
@pytest.mark.parametrize("kind", ["ioerr", "full"])
def test_any_failing_operation_loses_and_doubles_nothing(memory: Path, kind: str, new: bool, part: int) -> None:
    """Schema steps, captures, a shared file, quarantine, backup, retention, checkpoints: each operation of each."""
    disk = make_disk()
    operations, _ = attempt(disk, memory, 0, kind, 0, new=new)
    points = 0
    for at in range(part + 1, operations + 1, PARTS):
        for length in (1, FOR_GOOD):
            _, hits = attempt(disk, memory, at, kind, length, new=new)
            assert hits, (at, "the fault must hit, or this test proves nothing")
            points += 1
    assert points >= POINTS_MIN[kind, new] // PARTS


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_random_stretches_of_faults_lose_and_double_nothing(memory: Path) -> None:
    """A disk that stutters: a random number of operations fails from a random one on."""
    disk, rnd = make_disk(), random.Random()
    for _ in range(RANDOM_FAULTS_SOAK):
        at, length = rnd.randint(1, 400), int(rnd.expovariate(0.1)) + 1
        attempt(disk, memory, at, rnd.choice(("ioerr", "full")), length, new=rnd.random() < 0.3)
