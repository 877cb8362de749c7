"""Where Claude Code looks for settings, plugins, an administrator's policy and trust, seen from one folder.

Nothing here reads a settings file; it only says which ones count. The rules are the tool's own (its settings and
permissions pages, August 2026): project settings lie in the folder it is started in, local settings at the root of
the git repository around it, trust is kept by that root, in a worktree by the main checkout's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

SETTINGS_FOLDER = ".claude"
PARENTS_MAX = 100  # of a folder; a path of more is longer than the system allows
_POINTER_BYTES_MAX = 4096


class Level(StrEnum):
    """Which of the tool's settings: a later one is nearer to the project and wins where single values differ."""

    USER = "user"
    PROJECT = "project"
    LOCAL = "local"


class Places(NamedTuple):
    """The files that decide which hooks run in `folder`."""

    folder: Path
    user: Path
    project: Path
    local: Path
    config_folder: Path  # of the tool: settings, plugins, skills
    state: Path  # .claude.json, which holds what the user trusts
    managed_folder: Path
    trust_keys: tuple[Path, ...]  # the folders whose trust covers this one, nearest first
    keeps_trust: bool  # in the home folder the tool asks each time and writes nothing

    def settings(self, level: Level) -> Path:
        """Return the settings file of a level."""
        return {Level.USER: self.user, Level.PROJECT: self.project, Level.LOCAL: self.local}[level]


def managed_folder() -> Path:
    """Return where an administrator puts the policy files on this system."""
    if sys.platform == "darwin":
        return Path("/Library/Application Support/ClaudeCode")
    return Path("/etc/claude-code")


def find_places(
    environ: Mapping[str, str] | None = None, folder: Path | None = None, managed: Path | None = None
) -> Places:
    """Return the files that count for the tool when it is started in `folder` (else the current one)."""
    env = os.environ if environ is None else environ
    start = Path(os.path.realpath((folder or Path.cwd()).expanduser()))
    home = Path(env.get("HOME") or "~").expanduser()
    moved = env.get("CLAUDE_CONFIG_DIR")
    config = Path(moved).expanduser() if moved else home / SETTINGS_FOLDER
    root = _repository_root(start)
    at_root = root is not None and root != Path(os.path.realpath(home)) and _is_ours(root)
    return Places(
        folder=start,
        user=(config / "settings.json").absolute(),
        project=start / SETTINGS_FOLDER / "settings.json",
        local=(root if root is not None and at_root else start) / SETTINGS_FOLDER / "settings.local.json",
        config_folder=config.absolute(),
        state=((config if moved else home) / ".claude.json").absolute(),
        managed_folder=managed or managed_folder(),
        # Trust in a folder covers what lies in it, but no repository inside it.
        trust_keys=(root,) if root else (start, *list(start.parents)[:PARENTS_MAX]),
        keeps_trust=start != Path(os.path.realpath(home)),
    )


def _repository_root(start: Path) -> Path | None:
    """Return the root of the git repository around a folder, of a worktree the main checkout's, or None."""
    for folder in (start, *list(start.parents)[:PARENTS_MAX]):
        mark = folder / ".git"
        if mark.is_dir():
            return folder
        if mark.is_file():
            return _main_checkout(mark) or folder
    return None


def _main_checkout(pointer: Path) -> Path | None:
    """Return the main checkout that a worktree's `.git` file leads to; None for a submodule or what cannot be read."""
    try:
        text = pointer.read_bytes()[:_POINTER_BYTES_MAX].decode()
    except (OSError, UnicodeDecodeError):
        return None
    word, _, path = text.partition(":")
    inside = Path(os.path.realpath(pointer.parent / path.strip()))
    if word != "gitdir" or inside.parent.name != "worktrees" or inside.parent.parent.name != ".git":
        return None
    return inside.parent.parent.parent


def _is_ours(root: Path) -> bool:
    """Return whether root, `.git` and `.claude` are the user's own, without which local settings stay in the folder."""
    found = [path for path in (root, root / ".git", root / SETTINGS_FOLDER) if path.exists()]
    return all(path.stat().st_uid == os.geteuid() for path in found)
