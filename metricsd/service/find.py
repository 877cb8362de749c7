"""Which service manager this user has, and what to do where there is none.

A container, WSL without systemd and a login by `su` have no user's service manager. That is no fault: metricsd runs
there too, started by `metricsd up` or as the container's own command, and this says so in words that fit the place.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from metricsd.config import Paths
from metricsd.service.launchd import Launchd
from metricsd.service.manager import Manager, Run, run_command
from metricsd.service.systemd import Systemd

_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_IN_PROFILE = "put `metricsd up --quiet` into your shell's profile: it does nothing when the daemon runs already"


class Absent(NamedTuple):
    """Why there is no service manager, and what to do instead."""

    reason: str
    instead: str


def find_manager(
    paths: Paths, environ: Mapping[str, str], *, platform: str = sys.platform, run: Run = run_command
) -> Manager | Absent:
    """Return this user's service manager, or why there is none."""
    if platform == "darwin":
        return Launchd(paths, environ, run)
    manager = Systemd(paths, environ, run)
    return manager if manager.answers() else _absent(environ)


def find_installed(paths: Paths, environ: Mapping[str, str], *, run: Run = run_command) -> Manager | None:
    """Return the manager whose unit of this home lies on this machine, reachable or not; None without a unit."""
    candidates: list[Systemd | Launchd] = [Systemd(paths, environ, run), Launchd(paths, environ, run)]
    return next((manager for manager in candidates if manager.file.exists()), None)


def _absent(environ: Mapping[str, str]) -> Absent:
    if environ.get("WSL_DISTRO_NAME"):
        return Absent(
            "this WSL has no systemd",
            f"set `systemd=true` under [boot] in /etc/wsl.conf and restart WSL, or {_IN_PROFILE}",
        )
    if environ.get("container") or any(mark.exists() for mark in _CONTAINER_MARKS):
        return Absent(
            "this is a container without a service manager",
            "make `metricsd run` the container's command, or start it with `metricsd up`",
        )
    if Path("/run/systemd/system").is_dir():
        return Absent(
            "systemd runs, but your own manager cannot be reached from here (su, sudo and cron have none)",
            f"log in as yourself and try again, or {_IN_PROFILE}",
        )
    return Absent("there is no systemd and no launchd here", _IN_PROFILE)
