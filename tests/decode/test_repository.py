"""Project and branch of a working folder, from the repository's files alone, whatever those files are."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.decode.repository import DEPTH_MAX, FOLDERS_CACHED, TTL_S, Place, Repositories
from tests.fakes import FakeClock

NOWHERE = Place(None, None)


def find(folder: Path | str, home: Path | None = None) -> Place:
    return Repositories(FakeClock(), home).find(str(folder))


def make_repository(folder: Path, head: str = "ref: refs/heads/main\n") -> Path:
    """Make what `git init` makes, as far as anybody reads it."""
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text(head)
    return folder


def make_worktree(main: Path, folder: Path, branch: str) -> Path:
    """Make what `git worktree add` makes."""
    git = main / ".git" / "worktrees" / folder.name
    git.mkdir(parents=True)
    (git / "HEAD").write_text(f"ref: refs/heads/{branch}\n")
    (git / "commondir").write_text("../..\n")
    folder.mkdir(parents=True)
    (folder / ".git").write_text(f"gitdir: {git}\n")
    return folder


def test_repository_gives_its_root_and_branch(tmp_path: Path) -> None:
    """From the root and from any folder below it."""
    root = make_repository(tmp_path / "shop", "ref: refs/heads/feature/round-totals\n")
    (root / "src" / "deep").mkdir(parents=True)
    for folder in (root, root / "src", root / "src" / "deep", root / ".git"):
        assert find(folder) == Place("shop", "feature/round-totals")


def test_nearest_repository_counts(tmp_path: Path) -> None:
    """A clone inside a clone is its own project."""
    make_repository(tmp_path / "outer")
    inner = make_repository(tmp_path / "outer" / "vendor" / "inner", "ref: refs/heads/dev")
    assert find(inner) == Place("inner", "dev")


def test_detached_head_has_no_branch(tmp_path: Path) -> None:
    """A commit's hash is not a branch."""
    assert find(make_repository(tmp_path / "shop", "a" * 40 + "\n")) == Place("shop", None)


def test_reftable_repository_has_no_branch(tmp_path: Path) -> None:
    """Its HEAD is a stand-in for programs that cannot read the format."""
    assert find(make_repository(tmp_path / "shop", "ref: refs/heads/.invalid\n")) == Place("shop", None)


def test_worktree_is_part_of_the_main_repository(tmp_path: Path) -> None:
    """Its folder has any name; the project is the main checkout's, the branch its own."""
    main = make_repository(tmp_path / "shop")
    tree = make_worktree(main, tmp_path / "trees" / "bold-oak", "fix/cents")
    (tree / "src").mkdir()
    assert find(tree / "src") == Place("shop", "fix/cents")


def test_worktree_of_a_bare_repository(tmp_path: Path) -> None:
    """The bare folder's name without `.git`."""
    bare = tmp_path / "shop.git"
    (bare / "worktrees" / "w").mkdir(parents=True)
    (bare / "HEAD").write_text("ref: refs/heads/main\n")
    (bare / "worktrees" / "w" / "HEAD").write_text("ref: refs/heads/w\n")
    (bare / "worktrees" / "w" / "commondir").write_text("../..\n")
    tree = tmp_path / "w"
    tree.mkdir()
    (tree / ".git").write_text(f"gitdir: {bare}/worktrees/w\n")
    assert find(tree) == Place("shop", "w")


def test_submodule_is_its_own_project(tmp_path: Path) -> None:
    """It has a relative `.git` file and no common folder."""
    outer = make_repository(tmp_path / "outer")
    git = outer / ".git" / "modules" / "lib"
    git.mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/stable\n")
    (outer / "lib").mkdir()
    (outer / "lib" / ".git").write_text("gitdir: ../.git/modules/lib\n")
    assert find(outer / "lib") == Place("lib", "stable")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed: the hand-made repositories stand alone")
def test_what_git_itself_makes_is_understood(tmp_path: Path) -> None:
    """The layouts above are git's: init, a commit, a worktree, a detached head."""

    def git(folder: Path, *arguments: str) -> None:
        own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "HOME": str(tmp_path)}
        for role in ("AUTHOR", "COMMITTER"):
            own |= {f"GIT_{role}_NAME": "T", f"GIT_{role}_EMAIL": "t@example.test"}
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, env={**os.environ, **own})

    root = tmp_path / "shop"
    root.mkdir()
    git(root, "init", "-q")
    git(root, "checkout", "-q", "-b", "trunk")
    assert find(root) == Place("shop", "trunk")
    git(root, "commit", "-q", "--allow-empty", "-m", "one")
    git(root, "worktree", "add", "-q", "-b", "side", "../tree")
    assert find(tmp_path / "tree") == Place("shop", "side")
    git(root, "checkout", "-q", "--detach")
    assert find(root) == Place("shop", None)


def test_folder_without_repository_gives_its_own_name(tmp_path: Path) -> None:
    """No repository around it, so the folder is the project."""
    (tmp_path / "scratch").mkdir()
    assert find(tmp_path / "scratch") == Place("scratch", None)


def test_home_and_root_are_no_projects(tmp_path: Path) -> None:
    """The name of a home folder is the user's."""
    home = tmp_path / "mara"
    home.mkdir()
    assert find(home, home) == NOWHERE
    assert find("/") == NOWHERE


def test_repository_of_the_home_folder_does_not_count(tmp_path: Path) -> None:
    """Settings under version control must not turn all folders into one project with the user's name."""
    home = make_repository(tmp_path / "mara")
    (home / "scratch").mkdir()
    assert find(home, home) == NOWHERE
    assert find(home / "scratch", home) == Place("scratch", None)


def test_link_into_a_repository_is_followed(tmp_path: Path) -> None:
    """Where the folder really lies decides."""
    root = make_repository(tmp_path / "shop")
    (root / "src").mkdir()
    (tmp_path / "link").symlink_to(root / "src")
    assert find(tmp_path / "link") == Place("shop", "main")


@pytest.mark.parametrize(
    "cwd",
    [
        "",
        ".",
        "relative/folder",
        "~",
        "/nowhere/hunter2",
        "/etc/passwd",
        "/dev/null",
        "/\x00",
        "/tmp\x00x",
        "/" + "x" * 5000,
        "/" + "a/" * 2000,
        "/\ud800",
        "C:\\Users\\mara",
        "//server/share",
        "\n",
    ],
)
def test_what_is_not_an_existing_absolute_folder_names_nothing(cwd: str) -> None:
    """A hostile working folder cannot become a name."""
    assert find(cwd) == NOWHERE


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_no_text_raises_or_becomes_a_name(cwd: str) -> None:
    """Names come from folders that exist, and from nothing else."""
    place = find("/nowhere/" + cwd.replace("..", ""))
    assert place == NOWHERE


@pytest.fixture
def readable_tmp() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_denied_folder_names_nothing_of_what_is_in_it(readable_tmp: Path) -> None:
    """Permission errors end the search quietly; as root the test becomes somebody else for a moment."""
    root = make_repository(readable_tmp / "closed" / "shop")
    open_root = make_repository(readable_tmp / "shop")
    (readable_tmp / "closed").chmod(0)
    (open_root / ".git" / "HEAD").chmod(0)
    repositories = Repositories(FakeClock(), Path("/nowhere"))
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        assert repositories.find(str(root)) == NOWHERE
        assert repositories.find(str(open_root)) == Place("shop", None)
    finally:
        if was_root:
            os.seteuid(0)
        (readable_tmp / "closed").chmod(0o755)


def test_pipes_in_place_of_files_do_not_block(tmp_path: Path) -> None:
    """Nothing waits for a writer; the folder is as if without repository."""
    one, two = tmp_path / "one", make_repository(tmp_path / "two")
    one.mkdir()
    os.mkfifo(one / ".git")
    (two / ".git" / "HEAD").unlink()
    os.mkfifo(two / ".git" / "HEAD")
    assert find(one) == Place("one", None)
    assert find(two) == Place("two", None)


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    """HEAD has a few dozen bytes; a terabyte is not a HEAD."""
    root = make_repository(tmp_path / "shop")
    with (root / ".git" / "HEAD").open("wb") as file:
        file.write(b"ref: refs/heads/x")
        file.truncate(1 << 40)
    assert find(root) == Place("shop", None)


def test_loops_of_links_end(tmp_path: Path) -> None:
    """In the working folder, in `.git`, in HEAD, and in what a `.git` file points to."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert find(tmp_path / "a") == NOWHERE
    root = tmp_path / "shop"
    root.mkdir()
    (root / ".git").symlink_to(root / ".git")
    assert find(root) == Place("shop", None)
    (root / ".git").unlink()
    (root / ".git").write_text(f"gitdir: {tmp_path / 'a'}\n")
    assert find(root) == Place("shop", None)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"gitdir:",
        b"gitdir: /etc/passwd\n",
        b"gitdir: \0\n",
        b"gitdir: ../\xff\xfe\n",
        b"\xff" * 100,
        b"gitdir: /nowhere/hunter2/.git",
    ],
)
def test_broken_git_file_is_no_repository(tmp_path: Path, text: bytes) -> None:
    """What it says becomes a name only if it exists and has a HEAD."""
    root = tmp_path / "shop"
    root.mkdir()
    (root / ".git").write_bytes(text)
    assert find(root) == Place("shop", None)


@pytest.mark.parametrize("text", ["/nowhere/hunter2/.git", "..", "\0", ""])
def test_broken_common_folder_does_not_name_the_project(tmp_path: Path, text: str) -> None:
    """A worktree whose main repository is gone keeps its own name."""
    tree = make_worktree(make_repository(tmp_path / "shop"), tmp_path / "tree", "side")
    (tmp_path / "shop" / ".git" / "worktrees" / "tree" / "commondir").write_text(text)
    assert find(tree) == Place("tree", "side")


def test_git_file_says_gitdir_first(tmp_path: Path) -> None:
    """A file that only looks like one, before an existing repository, is not followed."""
    other = make_repository(tmp_path / "other", "ref: refs/heads/other\n")
    root = tmp_path / "shop"
    root.mkdir()
    (root / ".git").write_text(f"notdir: {other / '.git'}\n")
    assert find(root) == Place("shop", None)


def test_empty_git_folder_is_passed_over(tmp_path: Path) -> None:
    """As git does: the search goes on above it."""
    root = make_repository(tmp_path / "shop")
    (root / "sub" / ".git").mkdir(parents=True)
    assert find(root / "sub") == Place("shop", "main")


def test_names_are_clean_and_cut(tmp_path: Path) -> None:
    """Control characters go, and so does what is longer than the longest name."""
    root = make_repository(tmp_path / "sh\x1b[2Jop\u202e", "ref: refs/heads/" + "b\x07" * 300)
    assert find(root) == Place("sh[2Jop", "b" * 200)


def test_folder_name_that_is_not_utf8_is_text_that_a_database_takes(tmp_path: Path) -> None:
    """File names are bytes; names in the store are Unicode without halves of surrogate pairs."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    place = Repositories(FakeClock()).find(os.fsdecode(folder))
    assert place.project == "caf?"


def test_search_upward_is_bounded(tmp_path: Path) -> None:
    """At most 64 folders are looked at; a repository above them is not found."""
    root = make_repository(tmp_path / "shop")
    deep = root.joinpath(*["d"] * DEPTH_MAX)
    deep.mkdir(parents=True)
    assert find(deep) == Place("d", None)
    assert find(deep.parent) == Place("shop", "main")


def test_answer_is_reused_for_a_few_seconds(tmp_path: Path, clock: FakeClock) -> None:
    """A burst of events reads the files once; a checkout is seen after the time to live."""
    root = make_repository(tmp_path / "shop")
    repositories = Repositories(clock)
    assert repositories.find(str(root)).branch == "main"
    (root / ".git" / "HEAD").write_text("ref: refs/heads/next\n")
    clock.advance(TTL_S - 0.1)
    assert repositories.find(str(root)).branch == "main"
    clock.advance(0.2)
    assert repositories.find(str(root)).branch == "next"


def test_memory_is_bounded(tmp_path: Path, clock: FakeClock) -> None:
    """Any number of different folders leaves at most the newest in memory; long ones leave nothing."""
    repositories = Repositories(clock)
    for number in range(FOLDERS_CACHED + 50):
        repositories.find(f"/nowhere/{number}")
    repositories.find("/" + "x" * 100_000)
    assert len(repositories._places) == FOLDERS_CACHED
    assert "/nowhere/0" not in repositories._places
    assert max(map(len, repositories._places)) < 100
