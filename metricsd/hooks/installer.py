"""Registers the capture hook with Claude Code, takes it out again, and says how it stands.

The program is copied to a stable place in the state folder and registered by absolute path with the absolute spool,
so that upgrades, virtual environments and differing environments cannot break the tool. Installing twice changes
nothing; uninstalling an untouched file gives back its bytes. It must never leave a settings file half written or
not parsable: the tool would skip the whole of it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from metricsd.config import Paths
from metricsd.errors import HooksError
from metricsd.hooks.registration import TOOL, Handler, find_ours, installed_text, parse_settings, removed_text
from metricsd.resources import data_folder
from metricsd.spool import ensure_spool

BACKUP_MARK = ".metricsd-backup-"
# Backups looked at when uninstalling; a person who installed more often keeps the others.
BACKUPS_MAX = 50


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


def find_target(paths: Paths, environ: Mapping[str, str] | None = None, settings: Path | None = None) -> Target:
    """Return what would be registered: in `settings`, else in the user's own settings of Claude Code."""
    env = os.environ if environ is None else environ
    folder = Path(env.get("CLAUDE_CONFIG_DIR") or "~/.claude").expanduser()
    file = (settings or folder / "settings.json").expanduser().absolute()
    return Target(file, (paths.state_dir / "hooks" / "capture").absolute(), paths.spool.absolute())


def install(target: Target, *, dry_run: bool = False) -> Change:
    """Copy the program, register it for every event of the fragment, keep everything else.

    Raises HooksError, with the file as it was, when it cannot be read, parsed or replaced.
    """
    old = _read(target.settings)
    text = _text(old, target.settings)
    new = installed_text(text, target.settings, _wanted(target))
    changed = old is None or new != text
    copy = _capture_state(target.capture) != "ok"
    backup = None
    if not dry_run:
        ensure_spool(target.spool)
        if copy:
            _write_capture(target.capture)
        if changed:
            backup = _replace(target.settings, old, _encode(old, new))
    return Change(changed or copy, target.settings, _diff(old, new, target.settings), backup, target.capture, copy)


def uninstall(target: Target, *, dry_run: bool = False) -> Change:
    """Take out exactly our entries and the containers they leave empty; an untouched file gets its old bytes back.

    The program stays: a running tool may still call it. Raises HooksError as `install` does.
    """
    old = _read(target.settings)
    text = _text(old, target.settings)
    if old is None or not find_ours(text, target.settings):
        return Change(False, target.settings, "", None, target.capture, False)
    origin = _find_origin(old, target)
    new = _encode(old, removed_text(text, target.settings)) if origin is None else origin.raw
    after = None if new is None else _text(new, target.settings)
    backup = None
    if not dry_run:
        backup = _put_back(target.settings, old, new, origin)
    return Change(True, target.settings, _diff(old, after, target.settings), backup, target.capture, False)


def status(target: Target) -> Registration:
    """Return how the registration stands; raise HooksError when the settings cannot be read or parsed."""
    text = _text(_read(target.settings), target.settings)
    found = find_ours(text, target.settings)
    wanted = _wanted(target)
    events = {event: _event_state(handler, found.get(event, [])) for event, handler in wanted.items()}
    events |= {event: "extra" for event in found if event not in wanted}
    commands = sorted({str(handler.get("command")) for handlers in found.values() for handler in handlers})
    capture_state = _capture_state(target.capture)
    if not found:
        state = State.NOT_INSTALLED
    elif capture_state == "ok" and set(events.values()) == {"ok"}:
        state = State.INSTALLED
    else:
        state = State.DIFFERS
    disabled = parse_settings(text, target.settings).value.get("disableAllHooks") is True
    return Registration(state, target.settings, events, tuple(commands), target.capture, capture_state, disabled)


def _wanted(target: Target) -> dict[str, Handler]:
    """Return the handler of each event, from the shipped fragment with its places filled in."""
    fragment = json.loads((data_folder("hooks") / f"{TOOL}.json").read_text("utf-8"))
    places = {"@CAPTURE@": str(target.capture), "@SPOOL@": str(target.spool)}
    handlers: dict[str, Handler] = {}
    for event, groups in fragment["hooks"].items():
        handler = dict(groups[0]["hooks"][0])
        handler["command"] = places[handler["command"]]
        handler["args"] = [places.get(word, word) for word in handler["args"]]
        handlers[event] = handler
    return handlers


def _event_state(wanted: Handler, found: list[Handler]) -> str:
    if len(found) > 1:
        return "doubled"
    if not found:
        return "missing"
    return "ok" if found[0] == wanted else "differs"


def _read(settings: Path) -> bytes | None:
    try:
        return settings.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HooksError(f"{settings}: cannot be read ({error.strerror}): check its permissions") from error


def _text(raw: bytes | None, settings: Path) -> str:
    """Return the text without a byte order mark; a missing or empty file is an empty object."""
    try:
        text = (raw or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HooksError(f"{settings}: not UTF-8 at byte {error.start}: save it as UTF-8, then try again") from error
    return text if text.strip() else "{}\n"


def _encode(old: bytes | None, text: str) -> bytes:
    mark = b"\xef\xbb\xbf" if (old or b"").startswith(b"\xef\xbb\xbf") else b""
    return mark + text.encode("utf-8")


def _diff(old: bytes | None, new: str | None, settings: Path) -> str:
    """Return a unified diff of the texts; None is a file that is not there."""
    before = _text(old, settings) if old else ""
    name = str(settings)
    lines = difflib.unified_diff(before.splitlines(keepends=True), (new or "").splitlines(keepends=True), name, name)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _find_origin(old: bytes, target: Target) -> Origin | None:
    """Return what installing turned into `old`, or None when the file was changed since.

    Installing is a function of the bytes, so that trying it on each backup needs no record of ours.
    """
    wanted = _wanted(target)
    folder, stem = target.settings.parent, target.settings.name + BACKUP_MARK
    backups = sorted((file for file in folder.iterdir() if file.name.startswith(stem)), reverse=True)[:BACKUPS_MAX]
    for file in backups:
        with contextlib.suppress(HooksError, OSError):
            raw = file.read_bytes()
            text = _text(raw, file)
            if not find_ours(text, file) and _encode(raw, installed_text(text, file, wanted)) == old:
                return Origin(raw, file)
    made = _encode(None, installed_text(_text(None, target.settings), target.settings, wanted))
    return Origin(None, None) if old == made and not target.settings.is_symlink() else None


def _put_back(settings: Path, old: bytes, new: bytes | None, origin: Origin | None) -> Path | None:
    """Write what uninstalling leaves; return the backup if one was needed."""
    if new is None:
        settings.unlink(missing_ok=True)
        return None
    # Where the origin is known, the replaced file can be made again by installing, and its backup has served.
    backup = _replace(settings, old, new, keep_backup=origin is None)
    if origin is not None and origin.backup is not None:
        origin.backup.unlink(missing_ok=True)
    return backup


def _replace(settings: Path, old: bytes | None, new: bytes, *, keep_backup: bool = True) -> Path | None:
    """Put `new` in the file's place in one step, keeping its mode and following a link; return the backup made."""
    real = Path(os.path.realpath(settings))
    try:
        settings.parent.mkdir(parents=True, exist_ok=True)
        backup = _write_backup(settings, real, old) if old is not None and keep_backup else None
        if _read(settings) != old:
            raise HooksError(f"{settings}: another program changed it just now: try again")
        _write_atomically(real, new, 0o600 if old is None else stat.S_IMODE(real.stat().st_mode))
    except OSError as error:
        raise HooksError(f"{error.filename}: cannot be written ({error.strerror}): check its permissions") from error
    return backup


def _write_backup(settings: Path, real: Path, old: bytes) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    backup = settings.with_name(f"{settings.name}{BACKUP_MARK}{stamp}")
    if backup.exists():
        backup = backup.with_name(f"{backup.name}-{secrets.token_hex(3)}")
    _write_atomically(backup, old, stat.S_IMODE(real.stat().st_mode))
    return backup


def _write_atomically(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_capture(capture: Path) -> None:
    try:
        capture.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_atomically(capture, _shipped_capture(), 0o755)
    except OSError as error:
        raise HooksError(f"{capture}: cannot be written ({error.strerror}): check the folder's permissions") from error


def _shipped_capture() -> bytes:
    return (data_folder("hooks") / "capture").read_bytes()


def _capture_state(capture: Path) -> str:
    try:
        found = capture.read_bytes()
    except OSError:
        return "missing"
    if hashlib.sha256(found).digest() != hashlib.sha256(_shipped_capture()).digest():
        return "other version"
    return "ok" if os.access(capture, os.X_OK) else "not executable"
