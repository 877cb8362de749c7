"""Becoming somebody without rights: permissions bind root only once root gives its rights up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's rights for a moment; as a normal user nothing is to be given up."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def let_nobody_reach(folder: Path) -> None:
    """Open a test's own folder to NOBODY, and the way to it, which pytest makes for the user who runs it alone."""
    if os.geteuid() != 0:
        return
    folder.chmod(0o777)
    for parent in folder.parents:
        mode = parent.stat().st_mode & 0o7777
        if mode & 0o011 != 0o011:
            parent.chmod(mode | 0o055)
