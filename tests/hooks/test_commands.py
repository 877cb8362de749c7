"""`metricsd hooks` and `metricsd record` as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metricsd.config import Paths
from metricsd.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK, EXIT_USAGE


@pytest.fixture(autouse=True)
def claude(home: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tool's settings, for this process and its children."""
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "claude"))
    return tmp_path / "claude"


def _run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metricsd", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def _json(*words: str, stdin: str = "") -> Any:
    done = _run(*words, "--json", stdin=stdin)
    assert done.returncode in (EXIT_OK, EXIT_DEGRADED), done.stderr
    return json.loads(done.stdout)


def test_install_status_uninstall_tell_what_they_did(claude: Path) -> None:
    """From not installed to installed and back, with exit 3 and a repair when the program is gone."""
    assert "not installed" in _run("hooks", "status").stdout
    assert _json("hooks", "install", "claude-code")["changed"]
    found, *others = _json("hooks", "status")
    assert {row["level"]: row["state"] for row in others} == {"project": "not installed", "local": "not installed"}
    assert (found["level"], found["state"], set(found["events"].values())) == (
        "user",
        "installed",
        {"ok"},
    )
    assert "already installed" in _run("hooks", "install").stdout
    Path(found["capture"]).unlink()
    differs = _run("hooks", "status")
    assert differs.returncode == EXIT_DEGRADED
    assert "metricsd hooks install" in differs.stdout
    assert "removed" in _run("hooks", "uninstall").stdout
    assert not (claude / "settings.json").exists()


def test_dry_run_prints_a_diff_of_another_file(tmp_path: Path) -> None:
    """`--settings` names the file; nothing is written."""
    file = tmp_path / "project.json"
    file.write_text('{\n  "model": "opus"\n}\n')
    done = _run("hooks", "install", "--settings", str(file), "--dry-run")
    assert done.returncode == EXIT_OK
    assert done.stdout.startswith(f"--- {file}\n+++ {file}\n@@ ")
    assert "\n+" in done.stdout
    assert file.read_text() == '{\n  "model": "opus"\n}\n'


def test_levels_of_a_project(tmp_path: Path) -> None:
    """`--level` and `--project` name the file; a shared one and a second registration are warned about on stderr."""
    for level, name in (("project", "settings.json"), ("local", "settings.local.json")):
        done = _run("hooks", "install", "--level", level, "--project", str(tmp_path))
        assert f"installed in {tmp_path / '.claude' / name}" in done.stdout
        assert "warning:" not in done.stdout
    assert "equal ones once" in done.stderr
    rows = _json("hooks", "status", "--project", str(tmp_path))
    assert [(row["level"], row["state"]) for row in rows] == [
        ("user", "not installed"),
        ("project", "installed"),
        ("local", "installed"),
    ]
    assert rows[1]["notices"][0]["code"] == "two_levels"
    assert _run("hooks", "status", "--project", str(tmp_path)).stdout.count("warning:") == 1
    gone = _run("hooks", "uninstall", "--level", "local", "--project", str(tmp_path))
    assert f"still registered: project, {tmp_path / '.claude' / 'settings.json'}" in gone.stdout
    (row,) = _json("hooks", "status", "--level", "local", "--project", str(tmp_path))
    assert (row["state"], row["notices"]) == ("not installed", [])
    assert "shared by everyone" in _run("hooks", "install", "--level", "project", "--project", str(tmp_path)).stderr


def test_a_broken_level_fails_and_shows_the_others(claude: Path, tmp_path: Path) -> None:
    """Exit 1; the healthy level is still told."""
    _run("hooks", "install")
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / "settings.json").write_text("{,}")
    done = _run("hooks", "status", "--project", str(tmp_path))
    assert done.returncode == EXIT_FAILED
    assert "installed in" in done.stdout
    assert "settings.json:1:2" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--settings", "x.json", "--level", "user"],
        ["--level", "nobody"],
        ["--project", "/no/such/folder", "--level", "local"],
    ],
)
def test_options_that_contradict_are_usage_errors(words: list[str]) -> None:
    """Exit 2, before anything is read."""
    assert _run("hooks", "install", *words).returncode == EXIT_USAGE


def test_export_plugin_says_what_to_do_with_it(tmp_path: Path, claude: Path) -> None:
    """The folder and how to try it; the second registration and this home's own spool are warned about."""
    done = _run("hooks", "export-plugin", str(tmp_path / "plugin"))
    assert done.stdout.splitlines() == [
        f"plugin: written to {tmp_path / 'plugin'}",
        f"Try it: claude --plugin-dir {tmp_path / 'plugin'}",
    ]
    assert done.stderr.count("warning:") == 1
    assert "METRICSD_HOME" in done.stderr
    _run("hooks", "install")
    found = _json("hooks", "export-plugin", str(tmp_path / "plugin"))
    assert (found["changed"], [notice["code"] for notice in found["notices"]]) == (
        [],
        ["captured_twice", "other_spool"],
    )
    done = _run("hooks", "export-plugin", str(claude))
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_FAILED, 1)


def test_a_broken_file_is_one_clear_line(claude: Path) -> None:
    """Exit 1, the place, and no traceback."""
    claude.mkdir()
    (claude / "settings.json").write_text("{,}")
    done = _run("hooks", "install")
    assert (done.returncode, done.stdout) == (EXIT_FAILED, "")
    assert done.stderr.count("\n") == 1
    assert "settings.json:1:2" in done.stderr


def test_record_writes_a_capture_and_prints_its_path(home: Paths) -> None:
    """From an argument, from stdin, and without a payload."""
    path = Path(_run("record", "Stop", '{"a": "½"}').stdout.strip())
    assert path.parent == home.spool / "new"
    assert json.loads(path.read_bytes())["payload"] == {"a": "½"}
    found = _json("record", "--app", "mine", "Stop", "-", stdin='{"b": [1]}')
    line = json.loads(Path(found["path"]).read_bytes())
    assert (line["app"], line["event"], line["payload"]) == ("mine", "Stop", {"b": [1]})
    path = Path(_run("record", "Stop").stdout.strip())
    assert json.loads(path.read_bytes())["payload"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["Stop", "{"], "JSON:1:2"),
        (["Stop", "[1]"], "must be a JSON object"),
        (["Stop", '{"a": NaN}'], "NaN"),
        (["St/op", "{}"], "event"),
        (["--app", "a b", "Stop", "{}"], "app"),
        (["Stop", "-"], "stdin:1:1"),
    ],
)
def test_record_refuses_what_no_capture_can_hold(words: list[str], says: str, home: Paths) -> None:
    """Exit 2, one line, nothing written."""
    done = _run("record", *words)
    assert (done.returncode, done.stdout) == (EXIT_USAGE, "")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert list((home.spool / "new").iterdir()) == []
