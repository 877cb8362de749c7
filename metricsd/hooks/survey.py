"""Reads everything that decides whether the tool runs our hooks in a folder, and says what stands in their way.

It reads settings of all levels, an administrator's policy, plugins and trust, and writes nothing. A file that cannot
be read or has another shape is a finding, never a failure: the tool goes on without it, and so does this. What an
administrator sends through a server or a device profile lies in no file and cannot be seen from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metricsd.errors import HooksError
from metricsd.hooks import json_text, settings_file
from metricsd.hooks.handler_schema import hooks_problems
from metricsd.hooks.places import SETTINGS_FOLDER, Level, Places
from metricsd.hooks.registration import Handler, find_ours, parse_settings

PLUGIN = "metricsd"
MANIFEST = Path(".claude-plugin") / "plugin.json"
FOLDERS_MAX = 1000  # skills and policy fragments looked at; nobody has more
STATE_BYTES_MAX = 64 * 1024 * 1024
# Any value but these two in the environment switches off everything that is not the tool's own.
_SWITCHES = ("CLAUDE_CODE_SAFE_MODE", "CLAUDE_CODE_SIMPLE")
_OFF = ("", "0", "false", "no", "off")


class Notice(NamedTuple):
    """Something that the user should know: a stable code and a sentence."""

    code: str
    says: str


class Loaded(NamedTuple):
    """A settings file as the tool sees it: its value (empty without a file), ours in it, or why it cannot be read."""

    path: Path
    value: Mapping[str, Any]
    ours: Mapping[str, list[Handler]]
    strict_until: int | None  # the line where a strict reader of JSON stops
    error: str | None


class Plugin(NamedTuple):
    """An enabled plugin of ours: its id, and its folder where it is used in place."""

    name: str
    folder: Path | None


class Survey(NamedTuple):
    """All that decides about our hooks in one folder."""

    places: Places
    levels: Mapping[Level, Loaded]
    managed: Loaded
    plugins: tuple[Plugin, ...]
    trusted: bool | None  # None: the tool has left no word about trust
    switched_off_by: str | None  # a variable of the environment


def survey(places: Places, environ: Mapping[str, str]) -> Survey:
    """Return the state of everything that decides about our hooks in `places.folder`."""
    files = {level: places.settings(level) for level in Level}
    # Started in the home folder, its project settings are the user's own: one file, one level.
    levels = {level: load(path) for level, path in files.items() if level is Level.USER or path != files[Level.USER]}
    managed = _load_managed(places.managed_folder)
    off = next((name for name in _SWITCHES if environ.get(name, "").lower() not in _OFF), None)
    return Survey(places, levels, managed, _plugins(places, levels, managed), _trusted(places), off)


def load(settings: Path) -> Loaded:
    """Return a settings file as it stands, with an error in place of its value if it cannot be used."""
    try:
        text = settings_file.decode(settings_file.read(settings), settings)
        value = parse_settings(text, settings).value
        return Loaded(settings, value, find_ours(text, settings), json_text.find_extension(text), None)
    except HooksError as error:
        return Loaded(settings, {}, {}, None, str(error))


def with_ours(found: Survey, level: Level, ours: Mapping[str, list[Handler]]) -> Survey:
    """Return the survey as it would be with these handlers of ours at a level."""
    return found._replace(levels={**found.levels, level: found.levels[level]._replace(ours=ours)})


def file_notices(loaded: Loaded) -> list[Notice]:
    """Return what the tool will not like about a file, none of it ours to change."""
    notices = []
    if loaded.strict_until is not None:
        notices.append(
            Notice(
                "not_strict_json",
                f"{loaded.path}:{loaded.strict_until}: a comment or trailing comma, which metricsd keeps, but Claude "
                "Code reads strict JSON and skips the whole file: take it out",
            )
        )
    for problem in hooks_problems(loaded.value):
        notices.append(
            Notice(
                "malformed_entry",
                f"{loaded.path}: {problem}: Claude Code skips the entry, older versions the whole file; correct it",
            )
        )
    return notices


def doubled(found: Survey) -> list[Notice]:
    """Return where more than one registration would capture the same event."""
    levels = [level for level, loaded in found.levels.items() if loaded.ours]
    sources = [f"the {level} settings" for level in levels]
    sources += ["the managed settings"] if found.managed.ours else []
    plugins = [f"the plugin {plugin.name}" for plugin in found.plugins]
    notices = []
    if len(plugins) > 1 or (plugins and sources):
        says = f"{_listed(sources + plugins)} each capture every event; the daemon drops doubles, but keep only one"
        notices.append(Notice("captured_twice", f"{says}: metricsd hooks uninstall, or claude plugin disable"))
    if len(sources) > 1:
        ours = [loaded.ours for loaded in [*found.levels.values(), found.managed] if loaded.ours]
        if all(each == ours[0] for each in ours):
            says = f"{_listed(sources)} hold the same entries; Claude Code runs equal ones once, but keep only one"
        else:
            says = f"{_listed(sources)} each capture every event; the daemon drops doubles, but keep only one"
        notices.append(Notice("two_levels", f"{says}: metricsd hooks uninstall --level {levels[-1]}"))
    return notices


def obstacles(found: Survey) -> list[Notice]:
    """Return what keeps the tool from running our hooks in this folder."""
    notices = []
    if found.managed.error is not None:
        notices.append(Notice("managed_unreadable", f"{found.managed.error} (or ask your administrator)"))
    if found.managed.value.get("disableAllHooks") is True:
        notices.append(Notice("hooks_disabled", f"{found.managed.path}: your administrator switched all hooks off"))
    # A value that is neither true nor false counts as true for the tool.
    if found.managed.value.get("allowManagedHooksOnly", False) is not False:
        notices += _managed_only(found)
    # The value nearest to the project counts, so that a project can switch on again what the user switched off.
    switches = [loaded for loaded in found.levels.values() if "disableAllHooks" in loaded.value]
    if switches and switches[-1].value["disableAllHooks"] is True:
        switch = switches[-1]
        notices.append(
            Notice("hooks_disabled", f"{switch.path}: `disableAllHooks` is on: no hook runs until it is off")
        )
    if found.switched_off_by is not None:
        says = f"{found.switched_off_by} is set here: Claude Code started from this shell runs no hooks"
        notices.append(Notice("safe_mode", says))
    if found.trusted is False:
        says = f"{found.places.folder}: not trusted yet: interactive sessions here hold back all hooks until you accept"
        notices.append(Notice("untrusted", f"{says} the question that Claude Code asks at its start"))
    return notices


def _managed_only(found: Survey) -> list[Notice]:
    forced = found.managed.value.get("enabledPlugins")
    forced = forced if isinstance(forced, dict) else {}
    if found.managed.ours or any(forced.get(plugin.name) is True for plugin in found.plugins):
        return []
    says = "your administrator allows hooks of managed settings only: ours do not run; ask them to deploy the hook"
    return [Notice("managed_hooks_only", f"{found.managed.path}: {says}")]


def _load_managed(folder: Path) -> Loaded:
    """Return an administrator's files merged as the tool does it: single values of later files win."""
    merged = load(folder / "managed-settings.json")
    for file in _listing(folder / "managed-settings.d"):
        if file.suffix != ".json" or file.name.startswith("."):
            continue
        part = load(file)
        plugins = {**_object(merged.value, "enabledPlugins"), **_object(part.value, "enabledPlugins")}
        value = {**merged.value, **part.value, "enabledPlugins": plugins}
        path = file if {"disableAllHooks", "allowManagedHooksOnly"} & part.value.keys() else merged.path
        merged = Loaded(path, value, {**merged.ours, **part.ours}, None, merged.error or part.error)
    return merged


def _plugins(places: Places, levels: Mapping[Level, Loaded], managed: Loaded) -> tuple[Plugin, ...]:
    """Return the enabled plugins of ours: installed from a marketplace by any level, or lying in a skills folder."""
    switches: dict[str, Any] = {}
    for loaded in [*levels.values(), managed]:
        switches |= _object(loaded.value, "enabledPlugins")
    found = [
        Plugin(name, None)
        for name, on in switches.items()
        if on is True and name.partition("@")[0] == PLUGIN and not name.endswith("@skills-dir")
    ]
    if switches.get(f"{PLUGIN}@skills-dir") is not False:
        folders = {places.config_folder / "skills", places.folder / SETTINGS_FOLDER / "skills"}
        lying = [each for folder in sorted(folders) for each in _listing(folder) if is_our_plugin(each)]
        found += [Plugin(f"{PLUGIN}@skills-dir", folder) for folder in lying]
    return tuple(found)


def is_our_plugin(folder: Path) -> bool:
    """Return whether a folder holds a plugin that `hooks export-plugin` wrote."""
    manifest = _read_object(folder / MANIFEST)
    return manifest is not None and manifest.get("name") == PLUGIN


def _trusted(places: Places) -> bool | None:
    """Return whether the user trusts the folder; None when the tool has never run or keeps no trust here."""
    state = _read_object(places.state) if places.keeps_trust else None
    if state is None:
        return None
    projects = _object(state, "projects")
    return any(_object(projects, str(key)).get("hasTrustDialogAccepted") is True for key in places.trust_keys)


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_file() or path.stat().st_size > STATE_BYTES_MAX:
            return None
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(owner: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = owner.get(key)
    return value if isinstance(value, dict) else {}


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:FOLDERS_MAX]
    except OSError:
        return []


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
