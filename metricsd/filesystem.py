"""Whether a home lies where SQLite can work: not on a network file system.

SQLite's write-ahead log is shared memory between processes, which a network file system does not give to two machines,
and locks there are promises of a server. Such a home is refused before anything is opened, with the way out: a
local folder. File systems of containers and virtual machines are fine, and one that cannot be told counts as local.
"""

from __future__ import annotations

from pathlib import Path

from metricsd.config import Paths
from metricsd.errors import ConfigError
from metricsd.watch import MOUNTS, filesystem_of, is_remote

NETWORK = frozenset({"afs", "cifs", "ncpfs", "nfs", "nfs4", "smb2", "smb3", "smbfs"})
"""File systems of which another machine may use the same files at the same time."""


def check_local(paths: Paths, mounts: Path = MOUNTS) -> None:
    """Raise ConfigError, with what to do, when the home lies on a network file system."""
    kind = kind_of(paths, mounts)
    if kind in NETWORK:
        raise ConfigError(
            f"{paths.state_dir}: lies on {kind}, where SQLite may lose data: set METRICSD_HOME to a folder on a local "
            "disk, for your shell and for your tools, and run `metricsd hooks install` again"
        )


def kind_of(paths: Paths, mounts: Path = MOUNTS) -> str:
    """Return the kind of the file system that holds the home, empty where that cannot be told."""
    # The folder may not exist yet; what holds its nearest parent will hold it.
    nearest = next((folder for folder in (paths.state_dir, *paths.state_dir.parents) if folder.exists()), Path("/"))
    return filesystem_of(str(nearest), mounts)


def is_shared(kind: str) -> bool:
    """Return whether others may write there without an event here: folders are polled then."""
    return is_remote(kind)
