"""What proves a run reads beside it: the second reader, and the check of the check, each in a process of its own.

They cost the other core and their own memory, and a fault in one of them cannot be a fault in the other reading. What
they write lies in a private folder of the run that is removed when it has been compared.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from metricsd.errors import MetricsdError
from metricsd.migration.digest import new_key
from metricsd.migration.model import FileKind, SourceFile
from metricsd.migration.second.files import File
from metricsd.migration.second.reader import FILES, READING, TASK, Reading, Task
from metricsd.migration.second.wire import Sent

_DOCUMENT, _SESSION_LINES, _LINES = 0, 1, 2
_SESSION_FOLDERS = ("sessions", "tool_metrics")
_SAID_CHARS_MAX = 300


class Beside:
    """A process of ours that works beside the run."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._module = module
        # It ends when this end of the pipe is closed, which the kernel does if this process is killed (leash.py).
        theirs, self._leash = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        os.close(theirs)

    def wait(self) -> None:
        """Wait for its end, once; raise MetricsdError when it failed."""
        _, said = self._process.communicate()
        if self._process.returncode != 0:
            last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise MetricsdError(f"{self._module} ended with {self._process.returncode}: {last[:_SAID_CHARS_MAX]}")

    def close(self) -> None:
        """End it, if it is still at work."""
        if self._process.stderr is not None and not self._process.stderr.closed:
            self._process.kill()
            self._process.communicate()
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1


class SecondReading:
    """One reading at work. Close it in any case: that ends the process and removes what it wrote."""

    def __init__(self, folder: Path, files: Iterable[SourceFile], now_us: int, sent: Sent | None = None) -> None:
        """Begin to read `files`, with their sizes as surveyed; `folder` is private and is made anew.

        `sent` says how rows leave this machine, where the target is the cloud.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        self.folder = folder
        self.key = new_key()
        (folder / TASK).write_bytes(msgspec.json.encode(Task(self.key.hex(), now_us, sent)))
        with (folder / FILES).open("w", encoding="utf-8", errors="surrogateescape") as listed:
            for number, file in enumerate(files):
                if file.kind is not FileKind.IGNORED:
                    listed.write(json.dumps(as_told(number, file)) + "\n")
        self._beside = Beside("metricsd.migration.second", [str(folder)])

    def wait(self) -> Reading:
        """Return what was read, waiting for it. Raises MetricsdError when the process failed."""
        self._beside.wait()
        return msgspec.json.decode((self.folder / READING).read_bytes(), type=Reading)

    def close(self) -> None:
        """End the process, and remove what it wrote."""
        self._beside.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def as_told(number: int, file: SourceFile) -> File:
    """Return a file as the second reader is told of it: where entries of sessions lie decides who has the word."""
    if file.kind is FileKind.OLDER_DOCUMENT:
        rank = _DOCUMENT
    else:
        rank = _SESSION_LINES if Path(file.name).parent.name in _SESSION_FOLDERS else _LINES
    return File(number, file.path, file.kind.value, file.packed, file.size, rank)
