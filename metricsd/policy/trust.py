"""Whether nobody but the user and root can change a file: asked of policies and of plug-ins before they are obeyed.

A file is refused if anybody else owns or can write it, or any folder on its path, also behind symbolic links. A
sticky folder of root's (such as /tmp) is allowed: others may write there but cannot replace what is not theirs.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_LINKS_MAX = 40


def find_weakness(path: Path, *, uid: int | None = None) -> str | None:
    """Return who else could change this file, as a sentence with what to do; None when nobody can.

    Raises OSError for a path that cannot be looked at.
    """
    own = os.geteuid() if uid is None else uid
    todo = [Path(path).absolute()]
    for _ in range(_LINKS_MAX):
        if not todo:
            return None
        for part in (todo[0], *todo[0].parents):
            found = part.lstat()
            if stat.S_ISLNK(found.st_mode):
                todo.append(part.resolve(strict=True))
            weak = _weakness_of(part, found, own)
            if weak is not None:
                return weak
        todo.pop(0)
    return f"{path}: too many symbolic links"


def _weakness_of(path: Path, found: os.stat_result, own: int) -> str | None:
    if found.st_uid not in (own, 0):
        return f"{path} belongs to another user (uid {found.st_uid}): make it yours or root's"
    if stat.S_ISLNK(found.st_mode) or not found.st_mode & _WRITABLE:
        return None
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX and found.st_uid == 0:
        return None
    who = "others" if found.st_mode & stat.S_IWOTH else "its group"
    return f"{path} can be written by {who}: run chmod go-w {path}"
