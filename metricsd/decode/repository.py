"""Names the project and the branch of a working folder, by reading the repository's own files.

Git is never run: it costs a process for each event and executes what a repository's configuration says. A folder
name from a payload becomes a name only if that folder exists. Everything read is a regular file of at most a few
kilobytes, opened without waiting, so that pipes, huge files, loops and denied folders cost nothing and name nothing.
"""

# Paths are hostile text here and stay text, as the operating system takes them.
# ruff: noqa: PTH111, PTH116, PTH117, PTH118, PTH119, PTH120

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from metricsd.clock import Clock
from metricsd.decode.names import clean_text

TTL_S = 5.0
"""How long an answer is reused: a checkout is seen after at most this time."""
FOLDERS_CACHED = 1024
DEPTH_MAX = 64
"""Folders looked at from the working folder up to the root."""

_PATH_CHARS_MAX = 4096
_FILE_BYTES_MAX = 4096
_REF = b"ref:"
_BRANCHES = "refs/heads/"
# What the reftable format writes into HEAD for programs that cannot read it.
_NO_BRANCH = ".invalid"


class Place(NamedTuple):
    """Where a session works: name of the repository's root folder, short name of its checked-out branch."""

    project: str | None = None
    branch: str | None = None


NOWHERE = Place()


class Repositories:
    """Finds places, and remembers them for a few seconds: events come in bursts from the same folders."""

    def __init__(self, clock: Clock, home: Path | None = None) -> None:
        """`home` is the folder whose name is the user's and never a project; the default is the user's own."""
        self._clock = clock
        self._home = os.path.realpath(home if home is not None else os.path.expanduser("~"))
        self._places: OrderedDict[str, tuple[float, Place]] = OrderedDict()

    def find(self, cwd: str) -> Place:
        """Return the place of an absolute folder; a place without names if it does not exist or says nothing."""
        now = self._clock.monotonic()
        known = self._places.get(cwd)
        if known is not None and now < known[0]:
            return known[1]
        if len(cwd) > _PATH_CHARS_MAX:
            return NOWHERE
        place = _look(cwd, self._home)
        self._places[cwd] = (now + TTL_S, place)
        self._places.move_to_end(cwd)
        if len(self._places) > FOLDERS_CACHED:
            self._places.popitem(last=False)
        return place


def _look(cwd: str, home: str) -> Place:
    if not os.path.isabs(cwd):
        return NOWHERE
    try:
        folder = os.path.realpath(cwd, strict=True)
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            return NOWHERE
    except (OSError, ValueError):
        return NOWHERE
    return _repository_place(folder, home) or Place(_folder_name(folder, home))


def _repository_place(folder: str, home: str) -> Place | None:
    """Return the place of the nearest repository at or above `folder`.

    A repository at the home folder holds somebody's settings, and its name would be the user's: it does not count.
    """
    for _ in range(DEPTH_MAX):
        if folder == home:
            return None
        git = _git_folder(folder)
        if git is not None:
            head = _read_small(os.path.join(git, "HEAD"))
            if head is not None:
                return Place(_project(folder, git, home), _branch(head))
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    return None


def _git_folder(folder: str) -> str | None:
    """Return the folder with HEAD of the checkout at `folder`: `.git` itself, or where a `.git` file points."""
    path = os.path.join(folder, ".git")
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(mode):
        return path
    text = _read_small(path)
    if text is None or not text.startswith(b"gitdir:"):
        return None
    return _join(folder, text[len(b"gitdir:") :])


def _project(folder: str, git: str, home: str) -> str | None:
    """Return the name of the repository: of the main checkout for a worktree, else of `folder`."""
    text = _read_small(os.path.join(git, "commondir"))
    common = _join(git, text) if text is not None else None
    if common is None or _read_small(os.path.join(common, "HEAD")) is None:
        return _folder_name(folder, home)
    if os.path.basename(common) == ".git":
        return _folder_name(os.path.dirname(common), home)
    # A bare repository, or that of a submodule.
    return _folder_name(common.removesuffix(".git"), home)


def _branch(head: bytes) -> str | None:
    if not head.startswith(_REF):
        return None
    name = head[len(_REF) :].decode("utf-8", "replace").strip().removeprefix(_BRANCHES)
    return (clean_text(name) or None) if name != _NO_BRANCH else None


def _folder_name(folder: str, home: str) -> str | None:
    if folder == home:
        return None
    # A name that is not UTF-8 comes with surrogates, which no database and no wire takes.
    name = os.path.basename(folder).encode("utf-8", "replace").decode("utf-8")
    return clean_text(name) or None


def _join(folder: str, text: bytes) -> str | None:
    """Return the existing folder that a file in `folder` points to, without links; None if there is none."""
    target = os.path.join(folder, os.fsdecode(text.strip()))
    try:
        return os.path.realpath(target, strict=True)
    except (OSError, ValueError):
        return None


def _read_small(path: str) -> bytes | None:
    """Return the bytes of a small regular file, None for anything else; never waits."""
    try:
        # Asked before opening, because opening a device can have effects; asked again on what was opened.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _FILE_BYTES_MAX:
            return None
        return os.read(fd, _FILE_BYTES_MAX)
    except OSError:
        return None
    finally:
        os.close(fd)
