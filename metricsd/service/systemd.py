"""The daemon as a systemd user unit: `systemctl --user`, in the user's own manager, without any privilege.

Where the user's manager cannot be reached (a container, `su`, cron) a unit that lies there is still removed whole:
its file and the link that would start it.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from metricsd.config import Paths
from metricsd.errors import ServiceError
from metricsd.service.manager import (
    COMMAND_TIMEOUT_S,
    START_TIMEOUT_S,
    Run,
    Standing,
    demand,
    fields_of,
    read_unit,
    run_command,
    write_unit,
)
from metricsd.service.unit import WITH_CLOUD, make_plan, systemd_text, unit_name

SYSTEMCTL = ("systemctl", "--user")
LINGERING = Path("/var/lib/systemd/linger")
_SHOWN = "LoadState,ActiveState,SubState,MainPID,UnitFileState,StatusText,Result,NRestarts"


class Systemd:
    """This user's systemd manager, for this home's unit."""

    name = "systemd"

    def __init__(self, paths: Paths, environ: Mapping[str, str], run: Run = run_command) -> None:
        self._paths = paths
        self._environ = environ
        self._run = run
        self._unit = f"{unit_name(environ)}.service"
        config = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
        self.file = Path(config) / "systemd" / "user" / self._unit

    def answers(self) -> bool:
        """Return whether the user's manager can be reached from here."""
        return self._run((*SYSTEMCTL, "show", "--property=Version"), COMMAND_TIMEOUT_S).code == 0

    def standing(self) -> Standing:
        """Return how the unit stands, as the manager says; without it, as the file says."""
        text = read_unit(self.file)
        done = self._run((*SYSTEMCTL, "show", self._unit, f"--property={_SHOWN}"), COMMAND_TIMEOUT_S)
        said = fields_of(done.out) if done.code == 0 else {}
        pid = int(said.get("MainPID") or 0)
        state = "/".join(filter(None, (said.get("ActiveState"), said.get("SubState")))) or "unknown"
        if said.get("Result", "success") != "success" and said.get("ActiveState") != "active":
            state = f"{state} ({said['Result']})"
        return Standing(
            manager=self.name,
            name=self._unit,
            file=self.file,
            installed=text is not None,
            current=text is not None and text in self._texts(),
            enabled=said["UnitFileState"] == "enabled" if said.get("UnitFileState") else None,
            running=said.get("ActiveState") == "active",
            state=state,
            pid=pid or None,
            says=said.get("StatusText", ""),
            lingers=_lingers(),
        )

    def install(self, *, with_cloud: bool) -> bool:
        """Write and enable the unit; return whether anything changed."""
        before = self.standing()
        changed = write_unit(self.file, self._text(with_cloud=with_cloud))
        demand(self._run, (*SYSTEMCTL, "daemon-reload"))
        if not before.enabled:
            demand(self._run, (*SYSTEMCTL, "enable", self._unit))
        return changed or not before.enabled

    def start(self) -> None:
        """Start the unit anew; systemd returns when the daemon has said READY."""
        # What failed five times before is no reason not to try once more.
        self._run((*SYSTEMCTL, "reset-failed", self._unit), COMMAND_TIMEOUT_S)
        try:
            demand(self._run, (*SYSTEMCTL, "restart", self._unit), START_TIMEOUT_S)
        except ServiceError as error:
            raise ServiceError(f"{error}: `metricsd service logs` says why") from error

    def uninstall(self) -> bool:
        """Stop and disable the unit and remove it, with or without the manager's help."""
        found = self.file.exists() or self.standing().running
        if not found:
            return False
        if self.answers():
            demand(self._run, (*SYSTEMCTL, "disable", "--now", self._unit), START_TIMEOUT_S)
        try:
            for wants in self.file.parent.glob(f"*.wants/{self._unit}"):
                wants.unlink(missing_ok=True)
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise ServiceError(f"{error.filename}: cannot be removed ({error.strerror}): remove it yourself") from error
        self._run((*SYSTEMCTL, "daemon-reload"), COMMAND_TIMEOUT_S)
        self._run((*SYSTEMCTL, "reset-failed", self._unit), COMMAND_TIMEOUT_S)
        return True

    def log_command(self, lines: int, *, follow: bool) -> list[str]:
        """Return the words that show the unit's part of the journal."""
        words = ["journalctl", "--user", "--unit", self._unit, "--lines", str(lines), "--no-pager"]
        return [*words, "--follow"] if follow else words

    def _text(self, *, with_cloud: bool) -> bytes:
        return systemd_text(make_plan(self._paths, self._environ, with_cloud=with_cloud)).encode()

    def _texts(self) -> list[bytes]:
        """Return the units that this metricsd writes: whether to serve a cloud too is the user's choice."""
        return [self._text(with_cloud=False), self._text(with_cloud=True)]


def serves_cloud(file: Path | None) -> bool:
    """Return whether an installed unit runs a cloud of its own beside the daemon."""
    return file is not None and WITH_CLOUD.encode() in (read_unit(file) or b"")


def _lingers() -> bool | None:
    """Return whether this user's services go on without a login; None where that cannot be told."""
    if not LINGERING.parent.is_dir():
        return None
    try:
        return (LINGERING / pwd.getpwuid(os.getuid()).pw_name).exists()
    except (KeyError, OSError):
        return None
