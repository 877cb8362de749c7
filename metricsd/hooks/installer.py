"""Registers the capture hook with Claude Code, takes it out again, and says how it stands.

The program is copied to a stable place in the state folder and registered by absolute path with the absolute spool,
so that upgrades, virtual environments and differing environments cannot break the tool. Installing twice changes
nothing; uninstalling an untouched file gives back its bytes. It must never leave a settings file half written or
not parsable: the tool would skip the whole of it.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from metricsd.config import Paths
from metricsd.errors import HooksError
from metricsd.hooks import settings_file
from metricsd.hooks.fragment import load_fragment, shipped_capture
from metricsd.hooks.registration import Handler, find_ours, installed_text, parse_settings, removed_text
from metricsd.spool import ensure_spool


class State(StrEnum):
    """How a registration stands."""

    INSTALLED = "installed"
    NOT_INSTALLED = "not installed"
    DIFFERS = "differs"


class Target(NamedTuple):
    """What is registered where: the settings file, the program's stable place, the spool."""

    settings: Path
    capture: Path
    spool: Path


class Change(NamedTuple):
    """What an install or uninstall did, or would do: a unified diff, and the backup if one was made."""

    changed: bool
    settings: Path
    diff: str
    backup: Path | None
    capture: Path
    capture_changed: bool


class Registration(NamedTuple):
    """The state as found. `events` maps each event to `ok`, `missing`, `differs` or `doubled`; others are `extra`."""

    state: State
    settings: Path
    events: Mapping[str, str]
    commands: tuple[str, ...]
    capture: Path
    capture_state: str  # ok | missing | other version | not executable
    disabled: bool  # the user switched all hooks off


class Origin(NamedTuple):
    """What the settings were before installing (None: no file), and the backup that says so."""

    raw: bytes | None
    backup: Path | None


def find_target(paths: Paths, settings: Path) -> Target:
    """Return what is registered in these settings."""
    file = settings.expanduser().absolute()
    return Target(file, (paths.state_dir / "hooks" / "capture").absolute(), paths.spool.absolute())


def install(target: Target, *, dry_run: bool = False) -> Change:
    """Copy the program, register it for every event of the fragment, keep everything else.

    Raises HooksError, with the file as it was, when it cannot be read, parsed or replaced.
    """
    old = settings_file.read(target.settings)
    text = settings_file.decode(old, target.settings)
    new = installed_text(text, target.settings, _wanted(target))
    changed = old is None or new != text
    copy = capture_state(target.capture) != "ok"
    backup = None
    if not dry_run:
        ensure_spool(target.spool)
        if copy:
            _write_capture(target.capture)
        if changed:
            backup = settings_file.replace(target.settings, old, settings_file.encode(old, new))
    return Change(changed or copy, target.settings, _diff(old, new, target.settings), backup, target.capture, copy)


def uninstall(target: Target, *, dry_run: bool = False) -> Change:
    """Take out exactly our entries and the containers they leave empty; an untouched file gets its old bytes back.

    The program stays: a running tool may still call it. Raises HooksError as `install` does.
    """
    old = settings_file.read(target.settings)
    text = settings_file.decode(old, target.settings)
    if old is None or not find_ours(text, target.settings):
        return Change(False, target.settings, "", None, target.capture, False)
    origin = _find_origin(old, target)
    new = settings_file.encode(old, removed_text(text, target.settings)) if origin is None else origin.raw
    after = None if new is None else settings_file.decode(new, target.settings)
    backup = None
    if not dry_run:
        backup = _put_back(target.settings, old, new, origin)
    return Change(True, target.settings, _diff(old, after, target.settings), backup, target.capture, False)


def status(target: Target) -> Registration:
    """Return how the registration stands; raise HooksError when the settings cannot be read or parsed."""
    text = settings_file.decode(settings_file.read(target.settings), target.settings)
    found = find_ours(text, target.settings)
    wanted = _wanted(target)
    events = {event: _event_state(handler, found.get(event, [])) for event, handler in wanted.items()}
    events |= {event: "extra" for event in found if event not in wanted}
    commands = sorted({str(handler.get("command")) for handlers in found.values() for handler in handlers})
    program = capture_state(target.capture)
    if not found:
        state = State.NOT_INSTALLED
    elif program == "ok" and set(events.values()) == {"ok"}:
        state = State.INSTALLED
    else:
        state = State.DIFFERS
    disabled = parse_settings(text, target.settings).value.get("disableAllHooks") is True
    return Registration(state, target.settings, events, tuple(commands), target.capture, program, disabled)


def wanted_entries(target: Target) -> dict[str, list[Handler]]:
    """Return what installing leaves in the settings: one handler an event."""
    return {event: [handler] for event, handler in _wanted(target).items()}


def _wanted(target: Target) -> dict[str, Handler]:
    """Return the handler of each event."""
    return load_fragment(str(target.capture), str(target.spool))


def _event_state(wanted: Handler, found: list[Handler]) -> str:
    if len(found) > 1:
        return "doubled"
    if not found:
        return "missing"
    return "ok" if found[0] == wanted else "differs"


def _diff(old: bytes | None, new: str | None, settings: Path) -> str:
    """Return a unified diff of the texts; None is a file that is not there."""
    before = settings_file.decode(old, settings) if old else ""
    name = str(settings)
    lines = difflib.unified_diff(before.splitlines(keepends=True), (new or "").splitlines(keepends=True), name, name)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _find_origin(old: bytes, target: Target) -> Origin | None:
    """Return what installing turned into `old`, or None when the file was changed since.

    Installing is a function of the bytes, so that trying it on each backup needs no record of ours.
    """
    wanted = _wanted(target)
    for file in settings_file.backups(target.settings):
        with contextlib.suppress(HooksError, OSError):
            raw = file.read_bytes()
            text = settings_file.decode(raw, file)
            if not find_ours(text, file) and settings_file.encode(raw, installed_text(text, file, wanted)) == old:
                return Origin(raw, file)
    made = settings_file.encode(
        None, installed_text(settings_file.decode(None, target.settings), target.settings, wanted)
    )
    return Origin(None, None) if old == made and not target.settings.is_symlink() else None


def _put_back(settings: Path, old: bytes, new: bytes | None, origin: Origin | None) -> Path | None:
    """Write what uninstalling leaves; return the backup if one was needed."""
    if new is None:
        settings.unlink(missing_ok=True)
        return None
    # Where the origin is known, the replaced file can be made again by installing, and its backup has served.
    backup = settings_file.replace(settings, old, new, keep_backup=origin is None)
    if origin is not None and origin.backup is not None:
        origin.backup.unlink(missing_ok=True)
    return backup


def _write_capture(capture: Path) -> None:
    try:
        capture.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings_file.write_atomically(capture, shipped_capture(), mode=0o755)
    except OSError as error:
        raise HooksError(f"{capture}: cannot be written ({error.strerror}): check the folder's permissions") from error


def capture_state(capture: Path) -> str:
    """Return how the program stands at its place: `ok`, `missing`, `other version` or `not executable`."""
    try:
        found = capture.read_bytes()
    except OSError:
        return "missing"
    if found != shipped_capture():
        return "other version"
    return "ok" if os.access(capture, os.X_OK) else "not executable"
