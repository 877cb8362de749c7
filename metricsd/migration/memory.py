"""The most memory that this process has used."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MARK = "VmHWM:"


def peak_rss_mb() -> float:
    """Return the peak of the resident memory in MiB.

    From the kernel's own mark of this program where there is one: the usual call also counts what the parent had in
    memory when it started this process.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(_MARK):
                return int(line.split()[1]) / 1024
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
