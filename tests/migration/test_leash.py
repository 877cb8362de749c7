"""What works beside a run ends with it, however it went: it would write into the folder of the run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metricsd.migration.leash import EXIT_CODE
from metricsd.migration.second_process import Beside, SecondReading
from tests.e2e.support import ROOT, wait_for
from tests.migration.sources import RECORDED, surveyed

FAULTS = 10_000_000
"""More than an hour's work."""
KILLED = """
import os, signal, sys
from metricsd.migration.second_process import Beside
beside = Beside("metricsd.migration.sensitivity", [sys.argv[1], "2", sys.argv[2]])
print(beside._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a proof makes it, whose second reading is done."""
    reading = SecondReading(
        tmp_path / "proof", surveyed(tmp_path / "run", RECORDED / "six").files(), 1_790_000_000_000_000
    )
    reading.wait()
    return tmp_path / "proof"


def test_letting_go_of_the_leash_ends_the_process(folder: Path) -> None:
    """At once, in the middle of its work, and it says by its code that it did not end by itself."""
    beside = Beside("metricsd.migration.sensitivity", [str(folder), "1", str(FAULTS)])
    try:
        wait_for((folder / "check-1").exists, "it is at work")
        assert beside._process.poll() is None
        os.close(beside._leash)
        beside._leash = -1
        assert beside._process.wait(timeout=30) == EXIT_CODE
    finally:
        beside.close()


def test_a_run_that_is_killed_takes_with_it_what_works_beside_it(folder: Path) -> None:
    """Nobody was there to let go: the kernel did."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(FAULTS)], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)

    def is_gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text() if Path("/proc").exists() else ""
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        # Whoever adopted it may not have looked yet.
        return state.rpartition(")")[2].split()[:1] == ["Z"]

    try:
        wait_for(is_gone, "it ended with its run")
    finally:
        if not is_gone():
            os.kill(pid, signal.SIGKILL)
