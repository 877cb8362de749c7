"""Whose history it is: the names that older tools wrote, mapped to opaque ids.

The store keeps a name where the older tools' clients look for it and never sends it; what travels is the id. `create`
makes the id that the older API gave to the same name, so both agree; `map` takes ids from a file and leaves out who is
not in it; `default` gives everything to one id. Pure, but for reading that file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from metricsd.decode.names import opaque_id
from metricsd.errors import UsageError
from metricsd.ids import user_uuid

CREATE, MAP, DEFAULT = "create", "map", "default"
STRATEGIES = (CREATE, MAP, DEFAULT)
NAMES_CACHED_MAX = 10_000
MAP_BYTES_MAX = 16 * 1024 * 1024


class People:
    """Maps names to ids by one strategy."""

    def __init__(self, strategy: str, known: Mapping[str, str], default: str | None) -> None:
        self._strategy = strategy
        self._known = known
        self._default = default
        self._ids: dict[str, str | None] = {}

    def id_of(self, name: str | None) -> str | None:
        """Return the id of a person; None for nobody, and for who is not in the file without a default."""
        if self._strategy == DEFAULT:
            return self._default
        if not name:
            return None
        if name not in self._ids:
            if len(self._ids) >= NAMES_CACHED_MAX:
                self._ids.clear()
            self._ids[name] = user_uuid(name) if self._strategy == CREATE else self._known.get(name, self._default)
        return self._ids[name]


def make_people(strategy: str, file: str | None, default: str | None) -> People:
    """Return the mapping that the options ask for; raise UsageError for a file that is none, or options that miss."""
    if strategy == MAP and file is None:
        raise UsageError("--users map needs --users-file FILE, a JSON object of names and ids")
    if strategy == DEFAULT and default is None:
        raise UsageError("--users default needs --default-user ID")
    if default is not None and opaque_id(default) != default:
        raise UsageError(f"--default-user {default[:80]!r}: an id is letters, digits and . _ : -")
    return People(strategy, _read(file) if file is not None else {}, default)


def _read(file: str) -> dict[str, str]:
    try:
        path = Path(file)
        if path.stat().st_size > MAP_BYTES_MAX:
            raise UsageError(f"--users-file {file}: larger than 16 MiB")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--users-file {file}: no JSON object of names and ids ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"--users-file {file}: no JSON object of names and ids")
    for name, value in found.items():
        if not isinstance(value, str) or opaque_id(value) != value:
            raise UsageError(f"--users-file {file}: {name!r}: an id is 1 to 200 letters, digits and . _ : -")
    return found
