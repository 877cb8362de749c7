"""Finds the folders that ship with metricsd: hooks, conflict_policies, systemd, launchd.

In a wheel they lie inside the package under `data/`; in a checkout (and an editable install) beside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Return the shipped folder `name`; raise FileNotFoundError when the installation is broken."""
    for folder in (_PACKAGE / "data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"metricsd's folder {name!r} is missing: reinstall metricsd")
