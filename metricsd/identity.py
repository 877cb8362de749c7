"""Who this installation is: `identity.json` beside the store, and the secrets of its login in `credentials.json`.

The installation key is made once, before any login, and outlives every device id, because capture ids are keyed by
it. Both files are 0600 and replaced atomically, so a crash leaves the old file or the new one, never half of one.
Credentials that others can read are refused with a sentence that says how to repair them. Nothing here talks to
the network or opens the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, NamedTuple

from metricsd.config import Paths
from metricsd.errors import AuthError, ConfigError
from metricsd.ids import INSTALLATION_KEY_BYTES, DeviceId, new_installation_key

FILE_BYTES_MAX = 64 * 1024
"""Longer files are not ours; reading stops there."""
TEXT_CHARS_MAX = 2000
_PRIVATE = 0o600
_PRIVATE_FOLDER = 0o700
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_DEVICE_ID = re.compile(r"[0-9A-Za-z._-]{1,64}")

LoginMark = tuple[int, int, int]


class Identity(NamedTuple):
    """This installation. `device_id` is None before the first login, `parent` the id it was forked from."""

    installation_key: bytes
    device_id: DeviceId | None = None
    parent: DeviceId | None = None


class Credentials(NamedTuple):
    """A login: the cloud's address, the device's token, and the key of the tenant's name hashes (32 bytes)."""

    url: str
    token: str
    tenant_key: bytes
    tenant: str
    user: str
    device_id: DeviceId

    def __repr__(self) -> str:
        """Leave both secrets out, because reprs end in logs and tracebacks."""
        return (
            f"Credentials(url={self.url!r}, tenant={self.tenant!r}, user={self.user!r}, device_id={self.device_id!r})"
        )


def load_identity(paths: Paths) -> Identity:
    """Return this installation's identity, making it first if there is none.

    Raises ConfigError for a file that is not ours: a new key in its place would give captures other ids.
    """
    found = _read(paths.identity)
    if found is not None:
        return _identity_of(found, paths.identity)
    fresh = Identity(new_installation_key())
    if _create(paths.identity, _identity_json(fresh)):
        return fresh
    # Another process was faster; its key counts.
    theirs = _read(paths.identity)
    if theirs is None:
        raise ConfigError(f"{paths.identity}: cannot be kept: check the folder's permissions")
    return _identity_of(theirs, paths.identity)


def save_identity(paths: Paths, identity: Identity) -> None:
    """Replace the identity file atomically."""
    _replace(paths.identity, _identity_json(identity))


def find_credentials(paths: Paths) -> Credentials | None:
    """Return the login, or None when there is none.

    Raises AuthError for a file that others can read or that is damaged, with what to do.
    """
    file = paths.credentials
    _refuse_shared(file)
    try:
        found = _read(file)
    except ConfigError as error:
        raise AuthError(f"{error}; run `metricsd login URL` again") from error
    if found is None:
        return None
    try:
        return parse_credentials(found)
    except (KeyError, TypeError, ValueError) as error:
        raise AuthError(f"{file}: not a login that metricsd wrote ({error}): run `metricsd login URL` again") from error


def find_login_mark(paths: Paths) -> LoginMark | None:
    """Return what changes when the login does, without reading it; None without a login."""
    try:
        found = paths.credentials.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def get_credentials(paths: Paths) -> Credentials:
    """Return the login; raise AuthError when there is none."""
    found = find_credentials(paths)
    if found is None:
        raise AuthError("not logged in: run `metricsd login URL` first")
    return found


def parse_credentials(document: dict[str, Any]) -> Credentials:
    """Return the login in a document; raise KeyError, TypeError or ValueError for one that cannot be."""
    for key in ("url", "token", "tenant_key", "tenant", "user"):
        if not isinstance(document[key], str):
            raise TypeError(f"{key} is not text")
        if not document[key].isprintable() or len(document[key]) > TEXT_CHARS_MAX:
            raise ValueError(f"{key} is too long or not printable")
    return Credentials(
        url=document["url"],
        token=document["token"],
        tenant_key=bytes.fromhex(document["tenant_key"]),
        tenant=document["tenant"],
        user=document["user"],
        device_id=_device(document["device_id"]),
    )


def save_login(paths: Paths, credentials: Credentials, *, parent: DeviceId | None) -> None:
    """Write a login and the device id that it brings, keeping the installation key.

    Credentials go first: a crash between the two files leaves an identity that the next tick corrects from them.
    """
    identity = load_identity(paths)
    document = credentials._asdict() | {"tenant_key": credentials.tenant_key.hex()}
    _replace(paths.credentials, json.dumps(document, indent=1))
    save_identity(paths, identity._replace(device_id=credentials.device_id, parent=parent))


def confirm_login(paths: Paths, credentials: Credentials) -> None:
    """Bring the identity in line with the credentials, after a crash between the two files."""
    identity = load_identity(paths)
    if identity.device_id != credentials.device_id:
        save_identity(paths, identity._replace(device_id=credentials.device_id, parent=identity.device_id))


def forget_login(paths: Paths) -> bool:
    """Delete the credentials; return whether there were any. The identity stays."""
    try:
        paths.credentials.unlink()
    except FileNotFoundError:
        return False
    return True


def _identity_json(identity: Identity) -> str:
    return json.dumps(identity._asdict() | {"installation_key": identity.installation_key.hex()}, indent=1)


def _identity_of(document: dict[str, Any], file: Path) -> Identity:
    try:
        key = _installation_key(document["installation_key"])
        return Identity(key, _device_or_none(document.get("device_id")), _device_or_none(document.get("parent")))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file}: not an identity that metricsd wrote ({error}): restore it from a backup, or move it away "
            "to start as a new installation"
        ) from error


def _installation_key(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != INSTALLATION_KEY_BYTES:
        raise ValueError(f"installation_key has {len(key)} bytes, not {INSTALLATION_KEY_BYTES}")
    return key


def _device_or_none(value: object) -> DeviceId | None:
    return None if value is None else _device(value)


def _device(value: object) -> DeviceId:
    if not isinstance(value, str) or not _DEVICE_ID.fullmatch(value):
        raise ValueError("device id is malformed")
    return DeviceId(value)


def _refuse_shared(file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except OSError:
        return
    if mode & _OTHERS:
        raise AuthError(f"{file}: others can read this secret (mode {mode & 0o777:03o}): run `chmod 600 {file}`")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        with file.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}): check its permissions") from error
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise ConfigError(f"{file}: damaged, it is not JSON: restore it from a backup, or move it away") from error
    if len(raw) > FILE_BYTES_MAX or not isinstance(document, dict):
        raise ConfigError(f"{file}: damaged, it is not a JSON object: restore it from a backup, or move it away")
    return document


def _create(file: Path, text: str) -> bool:
    """Write a file that does not exist yet, whole or not at all; return False if another process was first."""
    draft = _draft(file, text)
    try:
        os.link(draft, file)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links: replacing keeps the file whole, and only a race between two first
        # starts could lose one of two keys that no capture used yet.
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _replace(file: Path, text: str) -> None:
    draft = _draft(file, text)
    draft.replace(file)
    _sync_folder(file.parent)


def _draft(file: Path, text: str) -> Path:
    file.parent.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return draft


def _sync_folder(folder: Path) -> None:
    # Some file systems refuse to sync a folder; the rename is then as durable as they make it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
