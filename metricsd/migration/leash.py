"""Ends a process that works beside a run when the run's own process is gone, however it went.

A run that is killed and resumed begins its second reading anew in the same folder; one that went on writing there would
spoil it. The parent holds one end of a pipe whose other end is the child's stdin, and the kernel closes it with the parent.
"""

from __future__ import annotations

import os
import threading

EXIT_CODE = 3
_STDIN = 0


def hold_to_parent() -> None:
    """End this process as soon as its stdin ends: nothing is ever written to it."""
    threading.Thread(target=_wait, name="leash", daemon=True).start()


def _wait() -> None:
    # Not through sys.stdin, whose lock would be held when the interpreter ends.
    os.read(_STDIN, 1)
    # Nothing that it wrote counts any more, so nothing is to be finished.
    os._exit(EXIT_CODE)
