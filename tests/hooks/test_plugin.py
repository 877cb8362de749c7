"""The exported plugin: complete, run as the tool runs it, and never written over anything else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from metricsd import __version__
from metricsd.config import Paths
from metricsd.errors import HooksError
from metricsd.hooks.fragment import load_fragment
from metricsd.hooks.handler_schema import hooks_problems
from metricsd.hooks.plugin import CAPTURE, export_plugin
from tests.hooks.programs import lines_in


def test_the_plugin_is_complete_and_well_formed(tmp_path: Path) -> None:
    """A manifest with a name, the events of the installer in exec form without a spool, a program that runs."""
    folder = tmp_path / "plug in"
    export_plugin(folder)
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == [".claude-plugin/plugin.json", "bin/capture", "hooks/hooks.json"]
    manifest = json.loads((folder / ".claude-plugin" / "plugin.json").read_bytes())
    assert (manifest["name"], manifest["version"]) == ("metricsd", __version__)
    registration = json.loads((folder / "hooks" / "hooks.json").read_bytes())
    assert hooks_problems(registration) == []
    assert set(registration["hooks"]) == set(load_fragment("", ""))
    for event, groups in registration["hooks"].items():
        ((handler,),) = [group["hooks"] for group in groups]
        assert (handler["command"], handler["args"]) == (CAPTURE, ["claude-code", event])
    assert stat.S_IMODE((folder / "bin" / "capture").stat().st_mode) == 0o755


def test_the_registered_command_captures_into_the_default_spool(home: Paths, tmp_path: Path) -> None:
    """Run as the tool does, from a moved folder: the placeholder filled in, no argument but app and event."""
    export_plugin(tmp_path / "exported")
    moved = (tmp_path / "exported").rename(tmp_path / "cache it's")
    registration = json.loads((moved / "hooks" / "hooks.json").read_bytes())
    handler = registration["hooks"]["Stop"][0]["hooks"][0]
    command = handler["command"].replace("${CLAUDE_PLUGIN_ROOT}", str(moved))
    done = subprocess.run([command, *handler["args"]], input=b'{"a":1}', capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
    (line,) = lines_in(home.spool)
    got = json.loads(line)
    assert (got["app"], got["event"], got["payload"]) == ("claude-code", "Stop", {"a": 1})


def test_a_second_export_changes_nothing_and_repairs_what_changed(tmp_path: Path) -> None:
    """Same bytes, same files; a file of it that somebody changed is written again."""
    first = export_plugin(tmp_path / "p")
    assert len(first.changed) == 3
    assert export_plugin(tmp_path / "p").changed == ()
    program = tmp_path / "p" / "bin" / "capture"
    program.chmod(0o600)
    assert export_plugin(tmp_path / "p").changed == (program,)
    assert os.access(program, os.X_OK)


def test_a_folder_with_anything_else_is_left_alone(tmp_path: Path) -> None:
    """Also one that holds another plugin; an empty one is taken."""
    (tmp_path / "mine").write_text("x")
    with pytest.raises(HooksError, match="holds other files"):
        export_plugin(tmp_path)
    other = tmp_path / "other"
    (other / ".claude-plugin").mkdir(parents=True)
    (other / ".claude-plugin" / "plugin.json").write_text('{"name": "theirs"}')
    with pytest.raises(HooksError, match="holds other files"):
        export_plugin(other)
    assert [file.name for file in other.rglob("*") if file.is_file()] == ["plugin.json"]
    (tmp_path / "empty").mkdir()
    assert len(export_plugin(tmp_path / "empty").changed) == 3
    with pytest.raises(HooksError, match="cannot be written"):
        export_plugin(tmp_path / "mine")
