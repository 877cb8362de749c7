"""The tail's checklist: what files, rotation programs and people do, against a real daemon that is killed half-way.

Every case is a generator: it acts on a file of its own up to a `yield`, and goes on when everything that it counts
on has been stored. All cases share one home and run in step: before the first start, twice while the daemon runs,
while it is dead (kill -9), and once after its next start. Each is played in the spool and in a foreign folder.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.support import ROOT, Home, homes, shared_line, wait_for

SPAN = 1000
Steps = Iterator[None]


class Case:
    """One case at work: its file, its numbers, and what must be stored by now."""

    def __init__(self, folder: Path, name: str, first: int) -> None:
        self.folder, self.name, self.first = folder, name, first
        self.path = folder / f"{name}.jsonl"
        self.wanted: set[int] = set()

    def lines(self, *numbers: int) -> bytes:
        """Return whole lines that must be stored, once each, however often they are written."""
        mine = [self.first + number for number in numbers]
        self.wanted.update(mine)
        return b"".join(shared_line(number).encode() + b"\n" for number in mine)

    def append(self, *numbers: int) -> None:
        """Append lines under the case's name."""
        self.write(self.lines(*numbers))

    def write(self, data: bytes, path: Path | None = None) -> None:
        """Append bytes."""
        with (path or self.path).open("ab") as file:
            file.write(data)

    def beside(self, suffix: str) -> Path:
        """Return a path beside the file, as rotation names it."""
        return self.path.with_name(self.path.name + suffix)


def appended_while_stopped(case: Case) -> Steps:
    case.append(*range(5))
    yield
    yield
    yield
    case.append(*range(5, 9))
    yield
    case.append(9)


def partial_line_across_a_restart(case: Case) -> Steps:
    whole = case.lines(1)
    case.wanted.discard(case.first + 1)
    case.write(case.lines(0) + whole[:50])
    yield
    yield
    yield
    case.write(whole[50:])
    case.wanted.add(case.first + 1)


def rename_rotation_with_late_writes(case: Case) -> Steps:
    case.append(0, 1)
    yield
    with case.path.open("ab", buffering=0) as late:
        late.write(case.lines(2))
        case.path.rename(case.beside(".1"))
        late.write(case.lines(3))
        case.append(4, 5)
        yield
        late.write(case.lines(6))
        yield
        late.write(case.lines(7))
        yield
        late.write(case.lines(8))


def several_rotations_in_a_row(case: Case) -> Steps:
    case.append(0)
    yield
    for number in range(1, 4):
        case.append(number)
        for age in (2, 1):
            if case.beside(f".{age}").exists():
                case.beside(f".{age}").rename(case.beside(f".{age + 1}"))
        case.path.rename(case.beside(".1"))
    case.append(4)


def rotated_while_stopped(case: Case) -> Steps:
    case.append(0, 1)
    yield
    yield
    yield
    case.append(2)
    case.path.rename(case.beside(".1"))
    case.append(3)


def rotated_while_stopped_without_a_new_file(case: Case) -> Steps:
    case.append(0)
    yield
    yield
    yield
    case.append(1)
    case.path.rename(case.beside("-20261122"))
    yield
    case.append(2)


def renamed_to_a_followed_name(case: Case) -> Steps:
    case.append(0)
    yield
    other = case.folder / f"{case.name}-old.jsonl"
    case.append(1)
    case.path.rename(other)
    case.append(2)
    yield
    case.write(case.lines(3), other)


def moved_out_of_the_folder_with_late_writes(case: Case) -> Steps:
    case.append(0)
    yield
    away = case.folder / "away"
    away.mkdir(exist_ok=True)
    with case.path.open("ab", buffering=0) as late:
        case.path.rename(away / case.path.name)
        late.write(case.lines(1))
        yield
        late.write(case.lines(2))


def deleted_with_late_writes(case: Case) -> Steps:
    case.append(0)
    yield
    with case.path.open("ab", buffering=0) as late:
        late.write(case.lines(1))
        case.path.unlink()
        late.write(case.lines(2))
        yield


def copytruncate(case: Case) -> Steps:
    case.append(*range(3))
    yield
    case.append(3)
    shutil.copy(case.path, case.beside(".1"))
    os.truncate(case.path, 0)
    case.append(4)


def copytruncate_while_stopped(case: Case) -> Steps:
    case.append(*range(3))
    yield
    yield
    yield
    case.append(3)
    shutil.copy(case.path, case.beside(".1"))
    os.truncate(case.path, 0)
    case.append(4, 5, 6, 7, 8)


def copytruncate_under_a_writer_that_keeps_its_place(case: Case) -> Steps:
    with case.path.open("wb", buffering=0) as writer:
        writer.write(case.lines(*range(3)))
        yield
        shutil.copy(case.path, case.beside(".1"))
        os.truncate(case.path, 0)
        writer.write(case.lines(3))
        yield
        writer.write(case.lines(4))


def truncated_to_smaller(case: Case) -> Steps:
    case.append(*range(5))
    yield
    os.truncate(case.path, 0)
    case.append(10)


def truncated_and_rewritten_larger(case: Case) -> Steps:
    case.append(0)
    yield
    os.truncate(case.path, 0)
    case.append(*range(10, 40))


def truncated_and_rewritten_larger_while_stopped(case: Case) -> Steps:
    case.append(0)
    yield
    yield
    yield
    os.truncate(case.path, 0)
    case.append(*range(10, 40))


def truncated_within_a_line(case: Case) -> Steps:
    case.append(0, 1, 2)
    yield
    os.truncate(case.path, case.path.stat().st_size - 10)
    case.write(b"\n" + case.lines(3))


def deleted_and_recreated(case: Case) -> Steps:
    case.append(0)
    yield
    case.path.unlink()
    case.append(10, 11)


def deleted_and_recreated_while_stopped(case: Case) -> Steps:
    case.append(0, 1)
    yield
    yield
    yield
    case.path.unlink()
    case.append(10, 11)


def saved_atomically(case: Case) -> Steps:
    case.append(0, 1)
    yield
    draft = case.path.with_suffix(".tmp")
    draft.write_bytes(case.lines(0, 1, 2))
    draft.replace(case.path)
    yield
    case.append(3)


def restored_from_an_older_copy(case: Case) -> Steps:
    case.append(0)
    yield
    old = case.path.read_bytes()
    case.append(*range(1, 6))
    yield
    yield
    case.path.write_bytes(old)
    case.append(10)


def link_switched_to_another_file(case: Case) -> Steps:
    (case.folder / "targets").mkdir(exist_ok=True)
    first, second = (case.folder / "targets" / f"{case.name}-{n}" for n in (1, 2))
    case.write(case.lines(0), first)
    case.path.symlink_to(first)
    yield
    case.write(case.lines(10), second)
    switched = case.path.with_suffix(".link")
    switched.symlink_to(second)
    switched.replace(case.path)
    case.write(case.lines(1), first)
    yield
    case.write(case.lines(11), second)


def two_links_to_one_file(case: Case) -> Steps:
    case.append(0)
    (case.folder / f"{case.name}-too.jsonl").symlink_to(case.path)
    yield
    case.append(1)


def link_removed(case: Case) -> Steps:
    target = case.folder / f"{case.name}.data"
    case.write(case.lines(0), target)
    case.path.symlink_to(target)
    yield
    case.write(case.lines(1), target)
    case.path.unlink()


def gzip_of_the_rotated_file_beside(case: Case) -> Steps:
    case.append(0, 1)
    yield
    case.append(2)
    rotated = case.beside(".1")
    case.path.rename(rotated)
    case.append(3)
    yield
    case.beside(".1.gz").write_bytes(gzip.compress(rotated.read_bytes()))
    rotated.unlink()


def appears_later(case: Case) -> Steps:
    yield
    case.append(0)
    yield
    case.append(1)


def empty_lines(case: Case) -> Steps:
    case.write(b"\n\n\r\n  \n")
    yield
    case.append(0)
    case.write(b"\n\n")
    yield
    case.append(1)


def crlf_and_byte_order_mark(case: Case) -> Steps:
    case.write(b"\xef\xbb\xbf" + case.lines(0, 1).replace(b"\n", b"\r\n"))
    yield
    case.write(case.lines(2).replace(b"\n", b"\r\n"))


def line_separators_of_unicode(case: Case) -> Steps:
    for number, odd in enumerate(("\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c")):
        text = odd.encode("unicode_escape") if ord(odd) < 32 else odd.encode()
        text = b"\\u%04x" % ord(odd) if ord(odd) < 32 else text
        case.write(case.lines(number).replace(b'"tool_name"', b'"text":"a' + text + b'b","tool_name"'))
    yield
    case.append(10)


def bad_lines_between_good_ones(case: Case) -> Steps:
    case.write(case.lines(0) + b'{"torn\n' + case.lines(1) + b"\xff\xfe\n" + case.lines(2) + b"a\0b\n" + case.lines(3))
    yield
    case.write(b"\0\0\0" + case.lines(4))


def huge_lines(case: Case) -> Steps:
    big = b'"text":"' + b"x" * (5 * 1024 * 1024) + b'","tool_name"'
    case.write(case.lines(0) + case.lines(1).replace(b'"tool_name"', big) + case.lines(2))
    yield
    case.write(case.lines(3).replace(b'"tool_name"', big)[: 4 * 1024 * 1024])
    case.wanted.discard(case.first + 3)
    yield
    yield
    case.write(case.lines(3).replace(b'"tool_name"', big)[4 * 1024 * 1024 :] + case.lines(4))


def over_long_line(case: Case) -> Steps:
    case.write(case.lines(0) + b'{"x":"' + b"y" * (17 * 1024 * 1024) + b'"}\n' + case.lines(1))
    yield
    case.append(2)


def identical_small_files_that_diverge(case: Case) -> Steps:
    other = case.folder / f"{case.name}-twin.jsonl"
    case.append(0, 1)
    case.write(case.lines(0, 1), other)
    yield
    case.append(2)
    case.write(case.lines(3), other)
    yield
    yield
    case.path.rename(case.beside(".1"))
    case.write(case.lines(4), other)
    case.append(5)


def smaller_than_the_head_and_growing(case: Case) -> Steps:
    case.append(0)
    yield
    case.append(1)
    yield
    case.append(2, 3, 4)
    yield
    case.append(*range(5, 30))
    yield
    case.append(30)


def unchanged_beginning_with_other_lines_behind(case: Case) -> Steps:
    case.append(*range(20))
    yield
    head = case.path.read_bytes()[:1500]
    keep = head[: head.rindex(b"\n") + 1]
    os.truncate(case.path, len(keep))
    case.append(*range(100, 140))


def set_back_in_time(case: Case) -> Steps:
    case.append(0)
    os.utime(case.path, (0, 0))
    yield
    case.append(1)
    os.utime(case.path, (0, 0))
    yield
    case.append(2)
    os.utime(case.path, (4_000_000_000, 4_000_000_000))
    yield
    case.append(3)
    os.utime(case.path, (0, 0))


CASES: list[Callable[[Case], Steps]] = [
    appended_while_stopped, partial_line_across_a_restart, rename_rotation_with_late_writes,
    several_rotations_in_a_row, rotated_while_stopped, rotated_while_stopped_without_a_new_file,
    renamed_to_a_followed_name, moved_out_of_the_folder_with_late_writes, deleted_with_late_writes, copytruncate,
    copytruncate_while_stopped, copytruncate_under_a_writer_that_keeps_its_place, truncated_to_smaller,
    truncated_and_rewritten_larger, truncated_and_rewritten_larger_while_stopped, truncated_within_a_line,
    deleted_and_recreated, deleted_and_recreated_while_stopped, saved_atomically, restored_from_an_older_copy,
    link_switched_to_another_file, two_links_to_one_file, link_removed, gzip_of_the_rotated_file_beside, appears_later,
    empty_lines, crlf_and_byte_order_mark, line_separators_of_unicode, bad_lines_between_good_ones, huge_lines,
    over_long_line, identical_small_files_that_diverge, smaller_than_the_head_and_growing,
    unchanged_beginning_with_other_lines_behind, set_back_in_time,
]  # fmt: skip
PLACES = ("spool", "foreign")


class Played(NamedTuple):
    """What was stored of each case in each place, what had to be, and files that somebody else changed."""

    stored: Counter[int]
    wanted: dict[tuple[str, str], set[int]]
    first: dict[tuple[str, str], int]
    touched: list[str]


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and time of change of every plain file below a folder."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def play(home: Home, foreign: Path) -> Played:
    """Play all cases in step and return what became of them."""
    folders = {"spool": home.spool, "foreign": foreign}
    cases = {
        (case.__name__, place): Case(folders[place], case.__name__, (number * 2 + side) * SPAN)
        for number, case in enumerate(CASES)
        for side, place in enumerate(PLACES)
    }
    by_name = {case.__name__: case for case in CASES}
    steps = {key: by_name[key[0]](case) for key, case in cases.items()}

    def act() -> None:
        for step in steps.values():
            next(step, None)

    def settled() -> bool:
        wanted = set().union(*(case.wanted for case in cases.values()))
        return wanted <= set(home.durations())

    def settle(step: str) -> None:
        try:
            wait_for(settled, f"everything is stored after {step}", 20)
        except AssertionError:
            # Each case then says for itself what it lacks.
            return

    act()
    home.start_ready()
    settle("the first start")
    act()
    settle("the first acts while running")
    act()
    settle("the second acts while running")
    home.end(signal.SIGKILL)
    act()
    home.start_ready()
    settle("the second start")
    act()
    settle("the last acts")
    before = snapshot(foreign)
    assert home.end() == 0
    return Played(
        Counter(home.durations()),
        {key: case.wanted for key, case in cases.items()},
        {key: case.first for key, case in cases.items()},
        [path for path, state in snapshot(foreign).items() if before.get(path) != state],
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Two lives of one daemon serve every case."""
    folder = tmp_path_factory.mktemp("checklist")
    foreign = folder / "foreign"
    foreign.mkdir()
    with homes(folder, "home", tail_sources=foreign, tail_rescan_s=0.3, tail_rotated_wait_s=60) as (home,):
        (home.spool / "new").mkdir(parents=True)
        return play(home, foreign)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
@pytest.mark.timeout(180)
def test_every_line_is_stored_once(played: Played, case: str, place: str) -> None:
    """0 lost, 0 doubled, across a kill -9."""
    first = played.first[case, place]
    found = Counter({n - first: times for n, times in played.stored.items() if first <= n < first + SPAN})
    wanted = Counter(n - first for n in played.wanted[case, place])
    assert found == wanted, f"lost {sorted(wanted - found)}, doubled {sorted(found - wanted)}"


def test_files_of_others_are_never_touched(played: Played) -> None:
    """Not written, renamed, truncated or deleted, nor their times changed."""
    assert played.touched == []


def test_every_case_is_in_the_table_of_the_docs() -> None:
    """docs/reliability.md names each case, and no other."""
    text = (ROOT / "docs" / "reliability.md").read_text().split("## Files that others write")[1].split("\n## ")[0]
    assert re.findall(r"\| `(\w+)` \|$", text, re.M) == [case.__name__ for case in CASES]
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "tail").glob("test_*.py"))
    for name in re.findall(r"::(test_\w+)", text):
        assert f"def {name}(" in tests, name
