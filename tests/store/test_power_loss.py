"""The power fails: what the disk may hold then is rebuilt from a recording and given to the next start.

Between two syncs a disk may keep, drop, reorder and tear (at 512-byte sectors) whatever was written, and names that
were made, changed or deleted may be old or new. In every such state the database must be sound, what was let go must
be stored, and reading the spool again must give each event exactly once.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.store import reference
from tests.store.disk import Op, make_disk

SECTOR_BYTES = 512
STATES = 5000
STATES_SOAK = 1_000_000
PARTS = 4
TRIES_PER_STATE = 10
SEED = 7


class Recording(NamedTuple):
    """A workload's operations, the files before the first, and what was written into the spool before which."""

    base: dict[str, bytes]
    ops: list[Op]
    home: Path


class State(NamedTuple):
    """What the disk may hold: files by path; `let_go` the captures whose deletion had been asked for."""

    files: dict[str, bytes]
    let_go: set[str]


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    """Record the workload once. Syncs are recorded, not done, so every write lies between two of them."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    home = folder / "home"
    reference.make_home(home)
    base = files_of(home)
    disk = make_disk()
    disk.trace = []
    known = dict(base)

    def written(_: list[int]) -> None:
        # What others write counts as on the disk at once: the promise is about what we acknowledge.
        for path, data in files_of(reference.paths_of(home).spool).items():
            if known.get(path) != data:
                known[path] = data
                disk.note(Op("given", path, 0, data))

    with disk.mounted():
        reference.run(home, on_written=written)
    let_go = sum(op.what == "delete" and "/spool/new/" in op.path for op in disk.trace)
    assert let_go == reference.ROUNDS * (reference.CAPTURES + 1), "unseen deletions prove nothing"
    yield Recording(base, disk.trace, home)
    shutil.rmtree(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".db-shm"}


def state_at(recording: Recording, end: int, rnd: random.Random) -> State:
    """Return one state that a power loss after the first `end` operations may leave."""
    files = {path: bytearray(data) for path, data in recording.base.items()}
    waiting: list[Op] = []
    let_go: set[str] = set()
    for op in recording.ops[:end]:
        match op.what:
            case "given":
                files[op.path] = bytearray(op.data)
            case "sync":
                # A sync brings the file's bytes and its name, and a folder's names; the rest still waits.
                for one in [one for one in waiting if op.path in (one.path, one.to, str(Path(one.path).parent))]:
                    if one.what in ("write", "truncate", "create") and one.path != op.path:
                        continue
                    waiting.remove(one)
                    apply(files, one)
            case _:
                waiting.append(op)
                if op.what == "delete" and "/spool/new/" in op.path:
                    let_go.add(op.path)
    lose(files, waiting, rnd)
    return State({path: bytes(data) for path, data in files.items()}, let_go)


def lose(files: dict[str, bytearray], waiting: list[Op], rnd: random.Random) -> None:
    """Apply what happens to reach the disk of the operations that nobody synced."""
    kept = rnd.choice((0.0, 0.3, 0.7, 0.95, 1.0))
    for op in waiting:
        if rnd.random() >= kept:
            continue
        if op.what == "write" and len(op.data) > SECTOR_BYTES and rnd.random() < 0.2:
            for start in range(0, len(op.data), SECTOR_BYTES):
                if rnd.random() < 0.5:
                    apply(files, op._replace(offset=op.offset + start, data=op.data[start : start + SECTOR_BYTES]))
        else:
            apply(files, op)


def apply(files: dict[str, bytearray], op: Op) -> None:
    match op.what:
        case "create":
            files.setdefault(op.path, bytearray())
        case "write":
            data = files.setdefault(op.path, bytearray())
            data.extend(bytes(max(op.offset - len(data), 0)))
            data[op.offset : op.offset + len(op.data)] = op.data
        case "truncate":
            del files.setdefault(op.path, bytearray())[op.offset :]
        case "delete":
            files.pop(op.path, None)
        case "rename" if op.path in files:
            files[op.to] = files.pop(op.path)


def assert_survives(recording: Recording, state: State, place: Path) -> None:
    """Lay the state out as a home of its own, start on it, and compare with what must be there."""
    for path, data in state.files.items():
        target = place / Path(path).relative_to(recording.home)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        target.write_bytes(data)
    paths = reference.paths_of(place)
    wanted = {number_of(path) for path in state.let_go if "PostToolUse" in path}
    wanted |= {number_of(path) for path in state.files if "/spool/new/PostToolUse" in path}
    shared = state.files[str(reference.paths_of(recording.home).spool / "shared.jsonl")]
    wanted |= {int(line.split(b'"duration_ms": ')[1].split(b",")[0]) for line in shared.split(b"\n")[1:-1]}
    before = reference.numbers_in(place)
    assert not Counter(before) - Counter(wanted)
    missing = {number_of(path) for path in state.let_go if "PostToolUse" in path} - set(before)
    on_disk = {number_of(path) for path in state.files if "/spool/new/PostToolUse" in path}
    assert missing <= on_disk, f"acknowledged and lost: {sorted(missing - on_disk)}"
    rejected = len({path for path in {*state.let_go, *state.files} if "/spool/new/Stop" in path})
    (paths.spool / "new").mkdir(parents=True, exist_ok=True, mode=0o700)
    reference.assert_exactly_once(place, sorted(wanted), rejected=rejected)


def number_of(path: str) -> int:
    """Return the number of a capture, which its name says."""
    return int(Path(path).name.split("-")[1])


def survive(recording: Recording, states: int, rnd: random.Random) -> None:
    """Try so many states that differ from each other."""
    seen: set[int] = set()
    place = recording.home.with_name(f"state-{rnd.random()}")
    for _ in range(states * TRIES_PER_STATE):
        if len(seen) == states:
            return
        state = state_at(recording, rnd.randint(1, len(recording.ops)), rnd)
        key = hash((frozenset(state.files.items()), frozenset(state.let_go)))
        if key not in seen:
            seen.add(key)
            assert_survives(recording, state, place)
            shutil.rmtree(place)
    raise AssertionError(f"only {len(seen)} different states: the recording is too short")


@pytest.mark.parametrize("part", range(PARTS))
def test_what_the_disk_may_hold_after_a_power_loss_has_every_event_once(recording: Recording, part: int) -> None:
    """Five thousand states, no two alike."""
    survive(recording, STATES // PARTS, random.Random(SEED + part))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_million_states_after_a_power_loss_have_every_event_once(recording: Recording) -> None:
    """States that no run had before."""
    for _ in range(STATES_SOAK // 1000):
        survive(recording, 1000, random.Random())
