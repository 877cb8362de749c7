"""Where conflict policies lie, and whether one of their files changed.

Apart from the policies themselves because `metricsd status` asks it within its 60 ms: nothing here may parse a
policy or import what does.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from metricsd.config import Paths
from metricsd.resources import data_folder

SYSTEM_POLICIES = Path("/etc/metricsd/conflict_policies")
FOLDER = "conflict_policies"
SHIPPED_DEFAULT = "merge_fields.toml"
FILES_MAX = 64
LAYERS = ("system", "tenant", "user", "shipped")
"""From the one that is asked first to the one that is asked last."""

Signature = list[list[str | int]]
"""Path, times, size and inode of each file, as JSON has them."""


class Places(NamedTuple):
    """Two folders, the tenant's file, the shipped file; the last good copies, and the daemon's report."""

    system: Path
    tenant: Path
    user: Path
    shipped: Path
    kept: Path
    report: Path


def places_of(paths: Paths, *, system: Path = SYSTEM_POLICIES) -> Places:
    """Return the places of a home."""
    return Places(
        system=system,
        tenant=tenant_file(paths),
        user=paths.config_dir / FOLDER,
        shipped=data_folder(FOLDER) / SHIPPED_DEFAULT,
        kept=paths.state_dir / "policy_kept",
        report=paths.state_dir / "policy.json",
    )


def tenant_file(paths: Paths) -> Path:
    """Return where the device keeps the policy that its tenant's cloud gave it."""
    return paths.state_dir / "tenant_policy.toml"


def files_of(places: Places, layer: str) -> list[Path]:
    """Return the policy files of a layer, in the order in which they are asked."""
    match layer:
        case "tenant":
            return [places.tenant] if places.tenant.exists() else []
        case "shipped":
            return [places.shipped]
        case _:
            folder = places.system if layer == "system" else places.user
            try:
                found = sorted(file for file in folder.iterdir() if file.suffix == ".toml" and file.name[0] != ".")
            except OSError:
                return []
            return found[:FILES_MAX]


def signature(places: Places) -> Signature:
    """Return what tells that a file changed. Modes count too: a repaired permission puts a file into force."""
    found: Signature = []
    for layer in LAYERS:
        for file in files_of(places, layer):
            with contextlib.suppress(OSError):
                about = file.stat()
                found.append([str(file), about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino])
    return found
