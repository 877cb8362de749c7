"""The shells and awks that the hook must work with, as found on this machine, and a way to run it with a pair."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from metricsd.spool import captures_folder

CAPTURE = Path(__file__).resolve().parents[2] / "hooks" / "capture"
SHELLS = {
    "dash": ["dash"],
    "bash": ["bash"],
    "bash-posix": ["bash", "--posix"],
    "zsh-sh": ["zsh", "--emulate", "sh"],
    "busybox-sh": ["busybox", "sh"],
    "sh": ["sh"],
}
AWKS = {"mawk": "mawk", "gawk": "gawk", "busybox-awk": "busybox", "bwk-awk": "original-awk"}
DEADLINE_S = 30


def need(program: str) -> str:
    """Return the program's path; skip, and say which one is missing, without it."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: the hook was NOT tested with it")
    return found


def shell_command(shell: str) -> list[str]:
    """Return the command that runs a script in this shell."""
    program, *options = SHELLS[shell]
    return [need(program), *options]


def path_with(folder: Path, awk: str) -> str:
    """Return a PATH that holds this awk, mkdir, and nothing else."""
    binaries = folder / f"bin-{awk}"
    binaries.mkdir(exist_ok=True)
    for name, program in (("awk", AWKS[awk]), ("mkdir", "mkdir")):
        link = binaries / name
        if not link.is_symlink():
            link.symlink_to(need(program))
    return str(binaries)


def run_capture(
    payload: bytes,
    spool: Path | None,
    *,
    shell: list[str] | None = None,
    event: str = "PostToolUse",
    app: str = "claude-code",
    env: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run the hook once and hold it to what is always promised: exit 0, nothing printed.

    The locale is one of several bytes a character, as users have; the hook has to count bytes all the same.
    """
    words = [*(shell or []), str(CAPTURE), app, event, *([str(spool)] if spool else [])]
    done = subprocess.run(
        words,
        input=payload,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        **options,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return done


def lines_in(spool: Path) -> list[bytes]:
    """Return the bytes of every capture, by name."""
    return [file.read_bytes() for file in sorted(captures_folder(spool).iterdir())]


def only_line(spool: Path) -> bytes:
    """Return the bytes of the one capture, take it away, and hold it to one complete line."""
    (file,) = captures_folder(spool).iterdir()
    line = file.read_bytes()
    file.unlink()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    return line


def payload_of(line: bytes) -> Any:
    """Return the payload of a line, as a strict reader sees it."""
    return json.loads(line)["payload"]
