"""The processes beside a run: a failure is said, and nobody goes on for a run that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metricsd.errors import MetricsdError
from metricsd.migration.model import FileKind, SourceFile
from metricsd.migration.second.reader import READING
from metricsd.migration.second_process import Beside, SecondReading
from tests.migration.rows_of import NOW_US, call, write

STARTED = """
import os, sys
from pathlib import Path
from metricsd.migration.model import FileKind, SourceFile
from metricsd.migration.second_process import SecondReading
path = Path(sys.argv[1])
file = SourceFile(name=path.name, path=str(path), kind=FileKind.OLDER_LINES, size=path.stat().st_size)
reading = SecondReading(Path(sys.argv[2]), [file] * 40, int(sys.argv[3]))
print(reading._beside._process.pid, flush=True)
os._exit(0)
"""


def test_a_reader_ends_with_the_run_that_started_it(tmp_path: Path) -> None:
    """After kill -9 of the run it stops within some thousand lines, and leaves no result."""
    path = write(tmp_path / "source", [call()] * 12_000) / "tool-metrics.jsonl"
    command = [sys.executable, "-c", STARTED, str(path), str(tmp_path / "proof"), str(NOW_US)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    pid, deadline = int(done.stdout), time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline, "the reader goes on without its run"
        time.sleep(0.05)
    assert not (tmp_path / "proof" / READING).exists()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self/stat").exists()


def test_a_process_that_fails_says_why() -> None:
    """The last line of what it said, with its module and exit code."""
    beside = Beside("metricsd.migration.second", ["/nonexistent/folder"])
    try:
        with pytest.raises(MetricsdError, match=r"metricsd.migration.second ended with 1: FileNotFoundError"):
            beside.wait()
    finally:
        beside.close()


def test_closing_ends_the_process_and_removes_what_it_wrote(tmp_path: Path) -> None:
    """Also while it is at work, and a second time."""
    path = write(tmp_path / "source", [call()] * 2000) / "tool-metrics.jsonl"
    file = SourceFile(name=path.name, path=str(path), kind=FileKind.OLDER_LINES, size=path.stat().st_size)
    reading = SecondReading(tmp_path / "proof", [file] * 40, NOW_US)
    reading.close()
    reading.close()
    assert not (tmp_path / "proof").exists()
