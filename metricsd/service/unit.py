"""What a service manager is given: the shipped templates, filled in for this home. Pure, but for reading the templates.

The unit runs the very program that installed it, by absolute path, and carries the variables that decide where the
home lies, because a service manager does not know the user's shell. It never carries secrets or settings. A home of
its own (METRICSD_HOME) has a unit of its own, so that a trial does not take the place of the real one.
"""

from __future__ import annotations

import os
import plistlib
import sys
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from metricsd.config import ENV_HOME, Paths
from metricsd.errors import ServiceError
from metricsd.resources import data_folder

PLACES = (ENV_HOME, "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
"""Variables that decide where a home lies (see config.find_paths); a service has to be told them."""
WITH_CLOUD = "--with-cloud"
NAME = "metricsd"
_WRITTEN_BY = "# Written by `metricsd service install`, which overwrites changes; `systemctl --user edit` keeps yours."


class Plan(NamedTuple):
    """What is to run: the program's words, and the variables of its environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    environment_file: Path
    log_folder: Path
    name: str


def make_plan(paths: Paths, environ: Mapping[str, str], *, with_cloud: bool = False) -> Plan:
    """Return what this home's service runs."""
    command, environment = find_program()
    kept = {name: str(Path(environ[name]).expanduser().absolute()) for name in PLACES if environ.get(name)}
    words = (*command, "run", *((WITH_CLOUD,) if with_cloud else ()))
    return Plan(
        words, {**kept, **environment}, paths.config_dir / "environment", paths.log_file.parent, unit_name(environ)
    )


def find_program() -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the words that start this very metricsd from anywhere, and what its environment needs for that."""
    script = Path(sys.executable).parent / NAME
    if script.is_file() and os.access(script, os.X_OK):
        return (str(script),), {}
    # A checkout that is not installed: the interpreter has to be told where it lies.
    source = Path(__file__).resolve().parent.parent.parent
    return (sys.executable, "-P", "-m", NAME), {"PYTHONPATH": str(source)}


def unit_name(environ: Mapping[str, str]) -> str:
    """Return the unit's name without a suffix: `metricsd`, and one of its own for a home of its own."""
    home = environ.get(ENV_HOME)
    if not home:
        return NAME
    digest = blake2b(os.fsencode(Path(home).expanduser().absolute()), digest_size=4).hexdigest()
    return f"{NAME}-{digest}"


def systemd_text(plan: Plan) -> str:
    """Return the text of the systemd user unit. Raises ServiceError for a path that a unit cannot hold."""
    text = (data_folder("systemd") / "metricsd.service").read_text("utf-8")
    for place, value in (
        ("@COMMAND@ run", _words(plan.command)),
        ("@ENVIRONMENT@", _words([f"{name}={value}" for name, value in plan.environment.items()])),
        # This one takes the rest of its line as it is, spaces included.
        ("@ENVIRONMENT_FILE@", _checked(str(plan.environment_file)).replace("%", "%%")),
    ):
        # The comment above the sections names the places too.
        head, _, body = text.partition("[Unit]")
        text = f"{head}[Unit]{body.replace(place, value)}"
    return _without_manual(text)


def launchd_text(plan: Plan) -> bytes:
    """Return the bytes of the launchd agent's property list. Raises ServiceError for a path that it cannot hold."""
    found = plistlib.loads((data_folder("launchd") / "metricsd.plist").read_bytes())
    found["Label"] = plan.name
    found["ProgramArguments"] = [_checked(word) for word in plan.command]
    found["EnvironmentVariables"] = {name: _checked(value) for name, value in plan.environment.items()}
    for key in ("StandardOutPath", "StandardErrorPath"):
        found[key] = found[key].replace("@LOG_FOLDER@", _checked(str(plan.log_folder)))
    return plistlib.dumps(found, sort_keys=False)


def _words(words: Sequence[str]) -> str:
    """Return the words as systemd.syntax(7) quotes them: nothing is expanded, split or unescaped."""
    return " ".join(f'"{_escaped(_checked(word))}"' for word in words)


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _checked(word: str) -> str:
    if not word.isprintable() or "$" in word:
        # `$` is expanded in arguments but not in the program's path; no way to write it fits both.
        raise ServiceError(f"{word!r}: a service cannot have this in its path: install metricsd elsewhere")
    return word


def _without_manual(text: str) -> str:
    """Return the unit without the template's instructions for filling it in by hand."""
    head, _, body = text.partition("[Unit]")
    first = head.splitlines()[0].partition(". ")[0]
    return f"{first}.\n{_WRITTEN_BY}\n[Unit]{body}"
