"""How the hook stands on every level, a row each, with what the user should know about it.

A row that cannot be read is reported as such beside the others: one broken file must not hide how the rest stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from metricsd.config import Paths
from metricsd.hooks import installer
from metricsd.hooks.installer import Registration, State
from metricsd.hooks.places import Level, Places
from metricsd.hooks.plugin import PROGRAM
from metricsd.hooks.survey import Notice, Plugin, Survey, doubled, file_notices, load, obstacles, survey, with_ours

PLUGIN_LEVEL = "plugin"
FILE_LEVEL = "file"
UNREADABLE = "unreadable"
# What matters only to somebody whose hook is registered.
_LATER = frozenset({"untrusted", "safe_mode"})


class Row(NamedTuple):
    """One place of registration: `level` is user, project, local, plugin, or file for one named by the user."""

    level: str
    state: str
    settings: str
    registration: Registration | None
    error: str | None
    notices: tuple[Notice, ...]

    @property
    def registered(self) -> bool:
        """Return whether this place holds entries of ours, right or wrong."""
        return self.state in (State.INSTALLED, State.DIFFERS)


def find_level(places: Places, settings: Path) -> Level | None:
    """Return the level whose file this is, or None."""
    return next((level for level in Level if places.settings(level) == settings.expanduser().absolute()), None)


def rows(paths: Paths, places: Places, environ: Mapping[str, str]) -> list[Row]:
    """Return how the hook stands on each level and in each plugin."""
    found = survey(places, environ)
    own = [_level_row(paths, level, found) for level in found.levels]
    plugins = [_plugin_row(plugin) for plugin in found.plugins]
    everywhere = [*doubled(found), *obstacles(found)]
    listed = [*own, *plugins]
    if not any(row.registered for row in listed):
        everywhere = [notice for notice in everywhere if notice.code not in _LATER]
        return [own[0]._replace(notices=(*own[0].notices, *everywhere)), *own[1:]]
    return [row._replace(notices=(*row.notices, *everywhere)) if row.registered else row for row in listed]


def file_row(paths: Paths, settings: Path) -> Row:
    """Return how the hook stands in one file; raise HooksError when it cannot be read or parsed."""
    registration = installer.status(installer.find_target(paths, settings))
    notices = tuple(file_notices(load(registration.settings)))
    return Row(FILE_LEVEL, registration.state, str(registration.settings), registration, None, notices)


def change_notices(
    paths: Paths, places: Places, environ: Mapping[str, str], settings: Path, level: Level | None
) -> list[Notice]:
    """Return what to say to somebody who installs into `settings`, as if that were done already."""
    notices = file_notices(load(settings))
    if level is None:
        return notices
    found = survey(places, environ)
    if level in found.levels:
        target = installer.find_target(paths, settings)
        found = with_ours(found, level, installer.wanted_entries(target))
    if level is Level.PROJECT:
        says = f"{settings}: shared by everyone who works on the project, but names a program on this machine"
        notices.append(Notice("shared_file", f"{says}: --level local keeps it to yourself"))
    return [*notices, *doubled(found), *obstacles(found)]


def plugin_notices(paths: Paths, places: Places, environ: Mapping[str, str], default_spool: Path) -> list[Notice]:
    """Return what to say to somebody who exports the plugin."""
    found = survey(places, environ)
    notices = []
    registered = [level for level, loaded in found.levels.items() if loaded.ours]
    if registered:
        says = f"the {registered[0]} settings register the hook too, so with the plugin every event is captured twice"
        says += f" (the daemon drops doubles): metricsd hooks uninstall --level {registered[0]}"
        notices.append(Notice("captured_twice", says))
    if paths.spool != default_spool:
        says = f"this home's spool is {paths.spool}; the plugin writes there only where METRICSD_HOME is set alike"
        notices.append(Notice("other_spool", says))
    return notices


def _level_row(paths: Paths, level: Level, found: Survey) -> Row:
    loaded = found.levels[level]
    if loaded.error is not None:
        return Row(level, UNREADABLE, str(loaded.path), None, loaded.error, ())
    registration = installer.status(installer.find_target(paths, loaded.path))
    return Row(level, registration.state, str(loaded.path), registration, None, tuple(file_notices(loaded)))


def _plugin_row(plugin: Plugin) -> Row:
    if plugin.folder is None:
        return Row(PLUGIN_LEVEL, State.INSTALLED, plugin.name, None, None, ())
    program = installer.capture_state(plugin.folder / PROGRAM)
    if program == "ok":
        return Row(PLUGIN_LEVEL, State.INSTALLED, str(plugin.folder), None, None, ())
    says = f"{plugin.folder / PROGRAM}: {program}: metricsd hooks export-plugin {plugin.folder}"
    return Row(PLUGIN_LEVEL, State.DIFFERS, str(plugin.folder), None, None, (Notice("plugin_differs", says),))
