"""Settings of every level, plugins, an administrator's policy and trust: found where the tool looks, and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricsd.config import Paths
from metricsd.hooks import installer, report
from metricsd.hooks.places import Level, Places, find_places
from metricsd.hooks.plugin import export_plugin

Look = Callable[..., dict[str, report.Row]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a folder inside."""
    folder = tmp_path / "src" / "api"
    (folder / ".git").mkdir(parents=True)
    (folder / "web").mkdir()
    return folder


@pytest.fixture
def places(tmp_path: Path, project: Path) -> Places:
    return _places(tmp_path, project)


def _places(tmp_path: Path, folder: Path, **environ: str) -> Places:
    (tmp_path / "user").mkdir(exist_ok=True)
    return find_places({"HOME": str(tmp_path / "user"), **environ}, folder, tmp_path / "etc")


def _write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.fixture
def look(home: Paths, places: Places) -> Look:
    """Return the rows by level, plugins numbered; hold each notice to one sentence that names something."""

    def rows(**environ: str) -> dict[str, report.Row]:
        found = report.rows(home, places, environ)
        assert all(notice.says and "\n" not in notice.says for row in found for notice in row.notices)
        return {row.level: row for row in found}

    return rows


def _install(home: Paths, places: Places, *levels: Level) -> None:
    for level in levels:
        installer.install(installer.find_target(home, places.settings(level)))


def _codes(row: report.Row) -> list[str]:
    return [notice.code for notice in row.notices]


def test_files_lie_where_the_tool_looks(tmp_path: Path, project: Path) -> None:
    """User in the home or CLAUDE_CONFIG_DIR; project in the folder; local at the repository's root."""
    found = _places(tmp_path, project / "web")
    assert found.user == tmp_path / "user" / ".claude" / "settings.json"
    assert found.project == project / "web" / ".claude" / "settings.json"
    assert found.local == project / ".claude" / "settings.local.json"
    assert found.state == tmp_path / "user" / ".claude.json"
    moved = _places(tmp_path, tmp_path, CLAUDE_CONFIG_DIR=str(tmp_path / "c c"))
    assert moved.user == tmp_path / "c c" / "settings.json"
    assert moved.state == tmp_path / "c c" / ".claude.json"
    assert moved.local == tmp_path / ".claude" / "settings.local.json"


def test_a_worktree_shares_the_main_checkouts_local_settings(tmp_path: Path, project: Path) -> None:
    """Its `.git` file leads there; a submodule's leads nowhere else, and one that cannot be read neither."""
    tree = tmp_path / "tree"
    (project / ".git" / "worktrees" / "tree").mkdir(parents=True)
    _write(tree / ".git", f"gitdir: {project}/.git/worktrees/tree\n")
    assert _places(tmp_path, tree).local == project / ".claude" / "settings.local.json"
    assert _places(tmp_path, tree).trust_keys == (project,)
    module = project / "module"
    _write(module / ".git", "gitdir: ../.git/modules/module\n")
    assert _places(tmp_path, module).local == module / ".claude" / "settings.local.json"
    (tree / ".git").write_bytes(b"\xff\0")
    assert _places(tmp_path, tree).trust_keys == (tree,)


@pytest.mark.parametrize("level", Level)
def test_each_level_installs_and_comes_back_byte_for_byte(
    level: Level, home: Paths, places: Places, look: Look
) -> None:
    """Only that level's row changes, and uninstalling leaves nothing."""
    file = _write(places.settings(level), '{ "model" : "opus" /* mine */, }')
    _install(home, places, level)
    assert {name: str(row.state) for name, row in look().items()} == {
        each: "installed" if each == level else "not installed" for each in Level
    }
    installer.uninstall(installer.find_target(home, file))
    assert file.read_text() == '{ "model" : "opus" /* mine */, }'
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_two_levels_are_said_with_what_they_do(home: Paths, places: Places, look: Look) -> None:
    """Equal entries run once, others twice; both rows say it, and how to end it."""
    _install(home, places, Level.USER, Level.LOCAL)
    rows = look()
    assert _codes(rows["user"]) == _codes(rows["local"]) == ["two_levels"]
    assert "runs equal ones once" in rows["user"].notices[0].says
    assert "uninstall --level local" in rows["user"].notices[0].says
    target = installer.find_target(home, places.local)
    installer.install(target._replace(capture=home.state_dir / "old" / "hooks" / "capture"))
    assert "each capture every event" in look()["user"].notices[0].says


def test_plugin_with_settings_is_said_and_plugin_alone_is_not(home: Paths, places: Places, look: Look) -> None:
    """A plugin in the skills folder or enabled from a marketplace, unless it is switched off."""
    folder = places.config_folder / "skills" / "metricsd"
    export_plugin(folder)
    rows = look()
    assert (rows["plugin"].state, rows["plugin"].settings, _codes(rows["plugin"])) == ("installed", str(folder), [])
    _install(home, places, Level.USER)
    assert _codes(look()["user"]) == _codes(look()["plugin"]) == ["captured_twice"]
    _write(places.project, {"enabledPlugins": {"metricsd@skills-dir": False}})
    assert "plugin" not in look()
    _write(
        places.project, {"enabledPlugins": {"metricsd@skills-dir": False, "metricsd@team": True, "other@team": True}}
    )
    assert look()["plugin"].settings == "metricsd@team"
    _write(places.local, {"enabledPlugins": {"metricsd@team": False}})
    assert "plugin" not in look()


def test_an_outdated_plugin_differs(places: Places, look: Look) -> None:
    """Its program is compared, as the one that settings name is."""
    folder = places.config_folder / "skills" / "metricsd"
    export_plugin(folder)
    (folder / "bin" / "capture").write_text("#!/bin/sh\n")
    assert look()["plugin"].state == "differs"
    assert _codes(look()["plugin"]) == ["plugin_differs"]


def test_all_hooks_switched_off_is_said_by_the_nearest_file(home: Paths, places: Places, look: Look) -> None:
    """The user's switch holds until the project or local file says otherwise."""
    _write(places.user, {"disableAllHooks": True})
    _install(home, places, Level.USER)
    assert _codes(look()["user"]) == ["hooks_disabled"]
    _write(places.project, {"disableAllHooks": False})
    assert _codes(look()["user"]) == []
    _write(places.local, {"disableAllHooks": True})
    (notice,) = look()["user"].notices
    assert str(places.local) in notice.says


def test_an_administrators_policy_is_said(home: Paths, places: Places, look: Look) -> None:
    """Hooks off, or managed hooks alone, in the main file or a fragment, of which the last one counts."""
    _install(home, places, Level.USER)
    main = _write(places.managed_folder / "managed-settings.json", {"disableAllHooks": True})
    (notice,) = look()["user"].notices
    assert (notice.code, str(main) in notice.says) == ("hooks_disabled", True)
    _write(places.managed_folder / "managed-settings.d" / "10-a.json", {"disableAllHooks": False})
    assert _codes(look()["user"]) == []
    part = _write(places.managed_folder / "managed-settings.d" / "20-b.json", {"allowManagedHooksOnly": "yes"})
    (notice,) = look()["user"].notices
    assert (notice.code, str(part) in notice.says) == ("managed_hooks_only", True)
    _write(places.managed_folder / "managed-settings.d" / ".hidden.json", "{")
    _write(places.managed_folder / "managed-settings.d" / "30-c.txt", "{")
    assert _codes(look()["user"]) == ["managed_hooks_only"]
    _write(part, "{")
    assert _codes(look()["user"]) == ["managed_unreadable"]


def test_a_plugin_that_the_administrator_enables_runs(places: Places, look: Look) -> None:
    """It is exempt from `allowManagedHooksOnly`, and a user cannot switch it off."""
    policy = {"allowManagedHooksOnly": True, "enabledPlugins": {"metricsd@org": True}}
    _write(places.managed_folder / "managed-settings.json", policy)
    _write(places.user, {"enabledPlugins": {"metricsd@org": False}})
    rows = look()
    assert (rows["plugin"].state, _codes(rows["plugin"])) == ("installed", [])


def test_what_the_administrator_registers_counts_as_a_second_registration(
    home: Paths, places: Places, look: Look
) -> None:
    """Ours in managed settings run under every policy, and double the user's."""
    _install(home, places, Level.USER)
    value = json.loads(places.user.read_text())
    _write(places.managed_folder / "managed-settings.json", {**value, "allowManagedHooksOnly": True})
    assert _codes(look()["user"]) == ["two_levels"]


def test_an_untrusted_folder_is_said(home: Paths, places: Places, look: Look, tmp_path: Path, project: Path) -> None:
    """By the root of the repository; a parent's trust reaches folders without one; no state file, no word."""
    _install(home, places, Level.USER)
    assert _codes(look()["user"]) == []
    _write(places.state, {"projects": {str(tmp_path): {"hasTrustDialogAccepted": True}}})
    assert _codes(look()["user"]) == ["untrusted"]
    _write(places.state, {"projects": {str(project): {"hasTrustDialogAccepted": True}}})
    assert _codes(look()["user"]) == []
    plain = tmp_path / "plain" / "inner"
    plain.mkdir(parents=True)
    _write(places.state, {"projects": {str(tmp_path / "plain"): {"hasTrustDialogAccepted": True}}})
    assert _codes(report.rows(home, _places(tmp_path, plain), {})[0]) == []
    for hostile in ("[]", "{", '{"projects": []}', json.dumps({"projects": {str(project): True}}), "[" * 10_000):
        _write(places.state, hostile)
        assert set(_codes(look()["user"])) <= {"untrusted"}


def test_in_the_home_folder_there_is_one_file_and_no_trust(home: Paths, places: Places, tmp_path: Path) -> None:
    """Its project settings are the user's own, and trust is never written there."""
    _install(home, places, Level.USER)
    _write(places.state, {"projects": {}})
    rows = report.rows(home, _places(tmp_path, tmp_path / "user"), {})
    assert [(row.level, _codes(row)) for row in rows] == [("user", []), ("local", [])]


@pytest.mark.parametrize(("value", "codes"), [("1", ["safe_mode"]), ("true", ["safe_mode"]), ("0", []), ("", [])])
def test_safe_mode_of_this_shell_is_said(value: str, codes: list[str], home: Paths, places: Places, look: Look) -> None:
    """Either variable switches off every hook of the tool."""
    _install(home, places, Level.USER)
    for name in ("CLAUDE_CODE_SAFE_MODE", "CLAUDE_CODE_SIMPLE"):
        assert _codes(look(**{name: value})["user"]) == codes


def test_entries_of_others_and_comments_are_warned_about_and_kept(home: Paths, places: Places, look: Look) -> None:
    """A malformed entry and what strict JSON does not know are named with their place, and stay as they are."""
    text = '{\n  "hooks": {\n    // mine\n    "Stop": [{"hooks": [{"type": "command"}]}]\n  }\n}\n'
    _write(places.user, text)
    _install(home, places, Level.USER)
    row = look()["user"]
    assert _codes(row) == ["not_strict_json", "malformed_entry"]
    assert f"{places.user}:3:" in row.notices[0].says
    assert "hooks.Stop[0].hooks[0]: `command` is missing" in row.notices[1].says
    assert '// mine\n    "Stop": [{"hooks": [{"type": "command"}]}' in places.user.read_text()


def test_a_broken_level_does_not_hide_the_others(home: Paths, places: Places, look: Look) -> None:
    """Its row says what is wrong; the others say how they stand."""
    _install(home, places, Level.USER)
    _write(places.project, "{,}")
    rows = look()
    assert (rows["user"].state, rows["project"].state) == ("installed", "unreadable")
    assert f"{places.project}:1:2" in str(rows["project"].error)


def test_without_a_registration_only_what_would_stop_one_is_said(places: Places, look: Look) -> None:
    """A policy is, for whoever thinks of installing; trust is not."""
    _write(places.state, {"projects": {}})
    _write(places.managed_folder / "managed-settings.json", {"allowManagedHooksOnly": True})
    assert [_codes(row) for row in look().values()] == [["managed_hooks_only"], [], []]


def test_installing_says_beforehand_what_will_double(home: Paths, places: Places) -> None:
    """As if it were done: the other level, the plugin, and that a project's file is shared."""
    export_plugin(places.config_folder / "skills" / "any-name")
    _install(home, places, Level.USER)
    notices = report.change_notices(home, places, {}, places.project, Level.PROJECT)
    assert [notice.code for notice in notices] == ["shared_file", "captured_twice", "two_levels"]
    assert report.change_notices(home, places, {}, places.folder / "x.json", None) == []
