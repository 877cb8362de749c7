"""What several of the hook's tests stand on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hooks.matrix import Pair
from tests.hooks.programs import CAPTURE, path_with, shell_command


@pytest.fixture
def pair(shell: str, awk: str, tmp_path: Path) -> Pair:
    return Pair(shell_command(shell), {"PATH": path_with(tmp_path, awk)})


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter, with a copy of the hook; pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    shutil.copy(CAPTURE, folder / "capture")
    (folder / "capture").chmod(0o755)
    yield folder
    for each in folder.rglob("*"):
        if each.is_dir():
            each.chmod(0o755)
    shutil.rmtree(folder)
