"""The daemon as a launchd agent of the user's session on macOS: `launchctl` in the domain `gui/UID`.

Written by Apple's manual pages and tested against a program in launchctl's place; nobody has run it on a Mac yet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from metricsd.config import Paths
from metricsd.errors import ServiceError
from metricsd.service.manager import COMMAND_TIMEOUT_S, Run, Standing, demand, read_unit, run_command, write_unit
from metricsd.service.unit import launchd_text, make_plan, unit_name

LAUNCHCTL = "launchctl"
_PID = re.compile(r"^\s*pid = (\d+)$", re.MULTILINE)
_STATE = re.compile(r"^\s*state = (.+)$", re.MULTILINE)


class Launchd:
    """This user's launchd, for this home's agent."""

    name = "launchd"

    def __init__(self, paths: Paths, environ: Mapping[str, str], run: Run = run_command) -> None:
        self._paths = paths
        self._environ = environ
        self._run = run
        self._label = unit_name(environ)
        self._domain = f"gui/{os.getuid()}"
        home = Path(environ.get("HOME") or "~").expanduser()
        self.file = home / "Library" / "LaunchAgents" / f"{self._label}.plist"

    @property
    def _target(self) -> str:
        return f"{self._domain}/{self._label}"

    def standing(self) -> Standing:
        """Return how the agent stands, as launchd says; without it, as the file says."""
        data = read_unit(self.file)
        done = self._run((LAUNCHCTL, "print", self._target), COMMAND_TIMEOUT_S)
        pid, state = _PID.search(done.out), _STATE.search(done.out)
        return Standing(
            manager=self.name,
            name=self._label,
            file=self.file,
            installed=data is not None,
            current=data is not None and data in self._texts(),
            enabled=done.code == 0,
            running=pid is not None,
            state=state[1].strip() if state else "not loaded",
            pid=int(pid[1]) if pid else None,
            says="",
            lingers=None,
        )

    def install(self, *, with_cloud: bool) -> bool:
        """Write the agent and hand it to launchd, which starts it; return whether anything changed."""
        try:
            self._paths.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ServiceError(f"{error.filename}: cannot be made ({error.strerror}): check permissions") from error
        loaded = self._loaded()
        changed = write_unit(self.file, self._text(with_cloud=with_cloud))
        if changed and loaded:
            # launchd keeps what it read; only a fresh load takes the new text.
            demand(self._run, (LAUNCHCTL, "bootout", self._target))
            loaded = False
        demand(self._run, (LAUNCHCTL, "enable", self._target))
        if not loaded:
            demand(self._run, (LAUNCHCTL, "bootstrap", self._domain, str(self.file)))
        return changed or not loaded

    def start(self) -> None:
        """Start the agent anew; the caller waits for the daemon's own word."""
        demand(self._run, (LAUNCHCTL, "kickstart", "-k", self._target))

    def uninstall(self) -> bool:
        """Stop the agent, take it from launchd and remove its file."""
        loaded = self._loaded()
        if loaded:
            demand(self._run, (LAUNCHCTL, "bootout", self._target))
        found = self.file.exists()
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise ServiceError(f"{self.file}: cannot be removed ({error.strerror}): remove it yourself") from error
        return found or loaded

    def log_command(self, lines: int, *, follow: bool) -> list[str]:
        """Return the words that show what the agent printed."""
        words = ["tail", "-n", str(lines), str(self._paths.log_file.parent / "service.out")]
        return [*words, "-F"] if follow else words

    def _loaded(self) -> bool:
        return self._run((LAUNCHCTL, "print", self._target), COMMAND_TIMEOUT_S).code == 0

    def _text(self, *, with_cloud: bool) -> bytes:
        return launchd_text(make_plan(self._paths, self._environ, with_cloud=with_cloud))

    def _texts(self) -> list[bytes]:
        return [self._text(with_cloud=False), self._text(with_cloud=True)]
