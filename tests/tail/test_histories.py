"""Random histories of files, people and crashes, against an oracle that shares no code with the product.

The oracle looks at the folder itself each time the tail does: every complete line that it could read then must be in
the store from then on, exactly once (twice for the twins that were written on purpose), and nothing may be there that
nobody ever wrote. What cannot be known by anyone is no loss: a line that was written and truncated, deleted or replaced
between two looks, or that lay in a file without permission at every look while it existed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from metricsd import crash, instance
from metricsd.config import find_paths, load_config
from metricsd.errors import AlreadyRunning
from metricsd.instance import InstanceLock
from metricsd.intake import Intake, open_intake
from metricsd.store import schema
from tests.fakes import FakeClock

NAMES = ("a.jsonl", "b.jsonl", "c.jsonl")
ASIDE = (*NAMES, "a.jsonl.1", "b.jsonl.1", "a.jsonl.1.bak")
POINTS = ("after_insert", "before_commit", "after_commit", "before_unlink", "half_of_unlinks")
NOBODY = 65534
STEPS_MIN = 2000
EXAMPLES = 150
STEPS = 40
RUNS_SOAK = 25
EXAMPLES_SOAK = 1000
"""Of one run: what was tried is kept until its end, so a single long run would fill the memory."""
STEPS_SOAK = 80

names = st.sampled_from(NAMES)
some = st.integers(1, 4)
# Around the sizes that matter to a reader: a line's end, a head of 1 KiB, a mark of at least 4 KiB.
paddings = st.sampled_from((0, 0, 7, 100, 1500, 4500))


def nobody_can_read_the_code() -> bool:
    """Return whether root may become nobody here; in a private checkout nobody could not import anything."""
    if os.geteuid() != 0:
        return False
    os.seteuid(NOBODY)
    try:
        return os.access(Path(schema.__file__).parent, os.R_OK | os.X_OK, effective_ids=True)
    finally:
        os.seteuid(0)


class Killed(BaseException):
    """What a kill -9 is to code in the same process: nothing may handle it."""


class Histories(RuleBasedStateMachine):
    """A home, whoever writes into its spool, and a daemon's intake that may die at any time."""

    steps = 0
    as_nobody = nobody_can_read_the_code()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="metricsd-history-"))
        if self.as_nobody:
            os.chown(self.folder, NOBODY, NOBODY)
        self.paths = find_paths({"METRICSD_HOME": str(self.folder)})
        self.spool = self.paths.state_dir / "spool"
        self.clock = FakeClock()
        self.number = 0
        self.must: Counter[int] = Counter()
        self.ever: Counter[int] = Counter()
        self.rest: dict[Path, bytes] = {}
        with self.user():
            self.open()

    @contextlib.contextmanager
    def user(self) -> Iterator[None]:
        """Act as a plain user: root could read what has no permissions."""
        if os.geteuid() != 0 or not self.as_nobody:
            yield  # already, or from the start
            return
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    # The daemon

    def open(self) -> None:
        self.lock = InstanceLock.acquire(self.paths.lock, "daemon")
        self.intake: Intake = open_intake(self.paths, load_config(self.paths, {}), self.clock)

    @rule()
    def look(self) -> None:
        """One round of the tail; what could be read at this moment must be stored from now on."""
        with self.user():
            seen = self.readable()
            self.intake.take_all()
        for number, times in seen.items():
            self.must[number] = max(self.must[number], times)

    @rule()
    def look_again(self) -> None:
        """Looks are as frequent as in life."""
        self.look()

    @rule(point=st.sampled_from(POINTS), nth=st.integers(1, 3))
    def look_and_die(self, point: crash.Point, nth: int) -> None:
        """The kill comes in the middle of a round, or after it if the round never gets there."""
        with self.user():
            before = self.captures()
            try:
                with dying_at(point, nth, self.image):
                    self.intake.take_all()
                self.image()
            except Killed:
                self.forget_all_but_the_disk()
            else:
                self.forget_all_but_the_disk()
            # A capture that was let go was acknowledged.
            self.must.update(before - self.captures())
            self.open()

    @rule()
    def kill(self) -> None:
        with self.user():
            self.image()
            self.forget_all_but_the_disk()
            self.open()

    @rule()
    def restart(self) -> None:
        with self.user():
            self.intake.store.checkpoint()
            self.intake.tail.close()
            self.intake.store.close()
            self.lock.release()
            self.open()

    @rule()
    def second_daemon(self) -> None:
        with self.user(), pytest.raises(AlreadyRunning):
            InstanceLock.acquire(self.paths.lock, "daemon")

    @rule(seconds=st.sampled_from((-86_400 * 3, -3600, 5, 7200, 86_400 * 30)))
    def clock_jumps(self, seconds: int) -> None:
        self.clock.jump(seconds)

    def image(self) -> None:
        """Keep the bytes of the database as they are at this instant."""
        self.kept = {
            path: path.read_bytes() for path in (self.paths.store, Path(f"{self.paths.store}-wal")) if path.exists()
        }

    def forget_all_but_the_disk(self) -> None:
        """Undo what closing does: afterwards the files are those that a kill would have left."""
        self.intake.tail.close()
        self.intake.store.close()
        self.lock.release()
        for path, data in self.kept.items():
            path.write_bytes(data)

    # Those who write

    @rule(name=names, count=some, padding=paddings)
    def append(self, name: str, count: int, padding: int) -> None:
        self.write(name, b"".join(self.line(padding) for _ in range(count)))

    @rule(name=names)
    def append_twins(self, name: str) -> None:
        line = self.line(0)
        self.ever[self.number] += 1
        self.write(name, line * 2)

    @rule(name=names, count=st.integers(0, 2), part=st.floats(0, 1))
    def append_part(self, name: str, count: int, part: float) -> None:
        """Some whole lines, and the beginning of one."""
        whole = b"".join(self.line(0) for _ in range(count))
        line = self.line(30)
        self.write(name, whole + line[: int(len(line) * part)])
        self.rest[self.spool / name] = line

    @rule()
    def append_the_rest(self) -> None:
        """Writers go on where they stopped, where nobody else's bytes came in between."""
        for path in [path for path in self.rest if path.parent == self.spool]:
            line = self.rest.pop(path)
            with self.user(), contextlib.suppress(FileNotFoundError, PermissionError):
                begun = path.read_bytes().rpartition(b"\n")[2]
                if begun and line.startswith(begun):
                    self.write(path.name, line[len(begun) :])

    @rule(name=names, count=some)
    def recreate(self, name: str, count: int) -> None:
        """Deleted and made again at once: the file system gives the same inode."""
        with self.user():
            (self.spool / name).unlink(missing_ok=True)
        self.write(name, b"".join(self.line(0) for _ in range(count)))

    @rule(name=names)
    def delete(self, name: str) -> None:
        with self.user():
            (self.spool / name).unlink(missing_ok=True)

    @rule(name=names, part=st.floats(0, 1))
    def truncate(self, name: str, part: float) -> None:
        with self.user(), contextlib.suppress(FileNotFoundError, PermissionError):
            os.truncate(self.spool / name, int((self.spool / name).stat().st_size * part))

    @rule(name=names, padding=paddings, kept=st.sampled_from((0, 0, 0.5, 0.9)))
    def rewrite_larger(self, name: str, padding: int, kept: float) -> None:
        """The same inode, longer than before, with other content: all of it, or what comes behind some first lines."""
        with self.user():
            try:
                data = (self.spool / name).read_bytes()
                size = len(data)
                os.truncate(self.spool / name, data.rfind(b"\n", 0, int(size * kept)) + 1)
            except (FileNotFoundError, PermissionError):
                return
        data = b""
        while len(data) <= size:
            data += self.line(padding)
        self.write(name, data)

    @rule(name=names, to=st.sampled_from(ASIDE))
    def rename(self, name: str, to: str) -> None:
        with self.user(), contextlib.suppress(FileNotFoundError):
            (self.spool / name).rename(self.spool / to)

    @rule(name=names, to=st.sampled_from(ASIDE))
    def copytruncate(self, name: str, to: str) -> None:
        with (
            self.user(),
            contextlib.suppress(FileNotFoundError, PermissionError, shutil.SameFileError),
        ):
            shutil.copyfile(self.spool / name, self.spool / to)
            os.truncate(self.spool / name, 0)

    @rule(name=names, mode=st.sampled_from((0o000, 0o200, 0o600)))
    def chmod(self, name: str, mode: int) -> None:
        with self.user(), contextlib.suppress(FileNotFoundError):
            (self.spool / name).chmod(mode)

    @rule(count=some, whole=st.booleans())
    def capture(self, count: int, whole: bool) -> None:
        for _ in range(count):
            self.number += 1
            line = self.encoded({"s": self.clock.now_us() // 1_000_000, "tool_use_id": f"toolu_{self.number:08x}"}, 0)
            path = self.spool / "new" / f"PostToolUse-{self.number}-1-0.jsonl"
            cut = len(line) if whole else len(line) // 2
            with self.user():
                path.write_bytes(line[:cut])
                os.utime(path, ns=(0, self.clock.now_us() * 1000))
            if not whole:
                self.rest[path] = line[cut:]

    @rule()
    def finish_captures(self) -> None:
        """A hook that was slow ends, unless its file was given up meanwhile."""
        with self.user():
            for path in [path for path in self.rest if path.parent.name == "new"]:
                data = self.rest.pop(path)
                if path.exists():
                    with path.open("ab") as file:
                        file.write(data)
                    os.utime(path, ns=(0, self.clock.now_us() * 1000))

    def line(self, padding: int) -> bytes:
        self.number += 1
        return self.encoded({"ts": 1_767_600_000_000 + self.number}, padding)

    def encoded(self, parts: dict[str, Any], padding: int) -> bytes:
        """Return a complete line that carries the current number."""
        self.ever[self.number] += 1
        call = parts.pop("tool_use_id", None)
        payload = {
            "session_id": "s", "tool_name": "Read", "tool_use_id": call, "duration_ms": self.number, "pad": "x" * padding,
        }  # fmt: skip
        whole = {"v": 1, "app": "claude-code", "event": "PostToolUse", **parts, "payload": payload}
        return json.dumps(whole).encode() + b"\n"

    def write(self, name: str, data: bytes) -> None:
        with self.user(), contextlib.suppress(PermissionError), (self.spool / name).open("ab") as file:
            file.write(data)

    # The oracle

    def readable(self) -> Counter[int]:
        """Return the numbers of all complete lines that can be read now, with how often one file holds them."""
        found: Counter[int] = Counter()
        for path in self.followed():
            for number, times in numbers_in(path).items():
                found[number] = max(found[number], times)
        return found + self.captures()

    def followed(self) -> list[Path]:
        return [path for path in sorted(self.spool.iterdir()) if path.name.endswith(".jsonl") and path.is_file()]

    def captures(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for path in (self.spool / "new").iterdir():
            found += numbers_in(path)
        return found

    @invariant()
    def nothing_is_lost_and_nothing_is_doubled(self) -> None:
        """What was seen is there, as often as it was written, and the totals count the same."""
        type(self).steps += 1
        db = self.intake.store.db
        stored = Counter(dict(db.execute("SELECT duration_ms, count(*) FROM event GROUP BY 1").fetchall()))
        assert not self.must - stored, f"lost {self.must - stored}"
        assert not stored - self.ever, f"doubled {stored - self.ever}"
        assert (db.execute("SELECT sum(n) FROM rollup").fetchone()[0] or 0) == stored.total()

    def teardown(self) -> None:
        """At the end all permissions come back, and a last daemon takes in what is left."""
        with self.user():
            for path in self.spool.glob("*.jsonl*"):
                path.chmod(0o600)
        self.restart()
        self.look()
        self.nothing_is_lost_and_nothing_is_doubled()
        with self.user():
            self.intake.tail.close()
            self.intake.store.close()
            self.lock.release()
        shutil.rmtree(self.folder)


def numbers_in(path: Path) -> Counter[int]:
    """Return the numbers of a file's complete lines; nothing from a file that cannot be read."""
    try:
        data = path.read_bytes()
    except PermissionError:
        return Counter()
    found: Counter[int] = Counter()
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            found[json.loads(line)["payload"]["duration_ms"]] += 1
    return found


@contextlib.contextmanager
def dying_at(point: crash.Point, nth: int, last_wish: Any) -> Iterator[None]:
    """Let the crash point raise instead of killing the test's own process."""

    def die() -> None:
        last_wish()
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crash, "_wanted", point)
        patch.setattr(crash, "_passes_left", nth)
        patch.setattr(crash, "_die", die)
        yield


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock's patience with a look at it has no part here."""
    monkeypatch.setattr(instance, "_ACQUIRE_PAUSE_S", 0.0)


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """Import whatever is imported late: nobody may not read the interpreter's own files."""
    as_nobody, Histories.as_nobody = Histories.as_nobody, False
    machine = Histories()
    machine.capture(2, True)
    machine.append("a.jsonl", 2, 0)
    machine.write("a.jsonl", b"no json\n")
    machine.teardown()
    Histories.as_nobody = as_nobody


@pytest.mark.timeout(400)
def test_two_thousand_random_steps_lose_nothing_and_double_nothing() -> None:
    """The same histories in every run, so that this test never fails by chance; the soak takes new ones."""
    if os.geteuid() == 0 and not Histories.as_nobody:
        print("LOST PERMISSIONS ARE NOT PART OF THESE HISTORIES: root sees all, and nobody cannot read this checkout")
    before = Histories.steps
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    assert Histories.steps - before >= STEPS_MIN


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_millions_of_random_steps_lose_nothing_and_double_nothing() -> None:
    """Histories that no run had before."""
    for _ in range(RUNS_SOAK):
        run_state_machine_as_test(
            Histories,
            settings=settings(
                max_examples=EXAMPLES_SOAK, stateful_step_count=STEPS_SOAK, database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
