"""What of a home is ours to remove: the data, by the names that we gave; never a folder as a whole.

A home may be a folder that holds other things too, so nothing is removed that we did not make. In the place of the
hook's program one stays that does nothing, because tools that run now have it registered and would complain about its
absence at each event. A cloud that was served from here stays, because it holds other devices' data.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from metricsd.config import Paths
from metricsd.errors import MetricsdError

_DATA = (
    "store.db*", ".store.db*", "spool", "quarantine", "backups", "damaged", "identity.json", ".identity.json.*",
    "policy.json", ".policy.json.*", "policy_kept", "tenant_policy.toml", ".tenant_policy.toml.*", "mode.json*",
    "log", "run", "demo.out", "older_api_waiting.jsonl*",
)  # fmt: skip
_LAST = "daemon.lock"
_QUIET = b"#!/bin/sh\n# metricsd was uninstalled: takes what a running session still sends, and keeps nothing.\nexec cat >/dev/null 2>&1\n"


def find_data(paths: Paths) -> list[Path]:
    """Return what the daemon recorded and keeps here, and the login: everything that `remove_data` removes."""
    found = [path for pattern in _DATA for path in sorted(paths.state_dir.glob(pattern))]
    found += [path for path in (paths.state_dir / _LAST, paths.credentials) if path.exists()]
    return found


def remove_data(paths: Paths) -> None:
    """Remove the data and the login. The caller holds the instance lock, so nobody is writing.

    Raises MetricsdError that names what cannot be removed; what was removed until then is gone.
    """
    for path in find_data(paths):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise MetricsdError(
                f"{error.filename or path}: cannot be removed ({error.strerror}): remove it yourself"
            ) from error
    _silence(hook_program(paths))
    for folder in (paths.cache_dir, paths.config_dir, paths.state_dir):
        with contextlib.suppress(OSError):
            folder.rmdir()


def hook_program(paths: Paths) -> Path:
    """Return where the hook's program lies, by which tools have it registered."""
    return paths.state_dir / "hooks" / "capture"


def _silence(program: Path) -> None:
    if not program.exists():
        return
    draft = program.with_name(".capture.quiet")
    try:
        draft.write_bytes(_QUIET)
        draft.chmod(0o755)
        draft.replace(program)
    except OSError as error:
        raise MetricsdError(f"{program}: cannot be replaced ({error.strerror}): remove it yourself") from error


def find_rest(paths: Paths) -> Iterator[Path]:
    """Yield what lies in the home and is not data: settings, the hook's program, a cloud, and what is not ours."""
    data = set(find_data(paths))
    for folder in (paths.config_dir, paths.state_dir, paths.cache_dir):
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if path not in data)
