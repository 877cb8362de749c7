"""`service`: have the daemon started at login and kept running by systemd or launchd, see how that stands, undo it.

Where there is neither, the answer says why and what to do instead. Installing twice changes nothing; a daemon that
was started by hand is handed over, so that there is never more than one.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

import click

from metricsd.cli.updown import READY_TIMEOUT_S, stop_daemon, wait_ready
from metricsd.config import ENV_PREFIX, RULES, Paths, find_paths, load_config
from metricsd.errors import EXIT_DEGRADED, EXIT_OK, ServiceError
from metricsd.instance import find_holder
from metricsd.service.find import Absent, find_installed, find_manager
from metricsd.service.manager import Manager, Standing

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")
LINGER = "it ends when you log out; `loginctl enable-linger` keeps it running"
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")


@click.group()
def service() -> None:
    """Have the daemon started at login, by systemd or launchd."""


@service.command()
@click.option("--with-cloud", is_flag=True, help="Serve this home's own cloud too, and sync with it.")
@_json
def install(with_cloud: bool, as_json: bool) -> None:
    """Install the daemon as a service of your login and start it; doing it again changes nothing."""
    paths = find_paths()
    load_config(paths)
    manager = _get_manager(paths)
    was_running = manager.standing().pid
    _take_over(paths, was_running)
    changed = manager.install(with_cloud=with_cloud)
    if changed or was_running is None:
        manager.start()
        wait_ready(paths, None, time.monotonic() + READY_TIMEOUT_S)
    found = manager.standing()
    hints = _hints(found)
    if as_json:
        click.echo(json.dumps({**_fields(found), "changed": changed, "hints": hints}, indent=1))
        return
    click.echo(f"{manager.name}: {'installed' if changed else 'already installed'} in {found.file}")
    click.echo(f"metricsd runs (pid {found.pid}) and is started at every login; `metricsd status` shows what it does")
    for hint in hints:
        click.echo(f"  hint: {hint}")


@service.command()
@_json
def uninstall(as_json: bool) -> None:
    """Stop the service and remove it; everything that was recorded stays."""
    paths = find_paths()
    manager = find_installed(paths, os.environ)
    removed = manager.uninstall() if manager is not None else False
    if as_json:
        click.echo(json.dumps({"removed": removed}))
    elif removed:
        click.echo("removed: the daemon is no longer started at login; `metricsd up` starts it by hand")
    else:
        click.echo("no service is installed for this home")


@service.command()
@_json
def status(as_json: bool) -> int:
    """Show how the service stands; exit 3 when it is installed but does not run, or is not what install would write."""
    paths = find_paths()
    found = find_manager(paths, os.environ)
    if isinstance(found, Absent):
        return _print_absent(found, find_installed(paths, os.environ), as_json)
    standing = found.standing()
    if as_json:
        click.echo(json.dumps({**_fields(standing), "hints": _hints(standing)}, indent=1))
    else:
        _print_standing(standing)
    return EXIT_DEGRADED if standing.installed and not (standing.running and standing.current) else EXIT_OK


@service.command()
@click.option("-n", "--lines", type=click.IntRange(0, 1_000_000), default=50, show_default=True, help="How many lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on showing lines as they come; Ctrl-C ends it.")
def logs(lines: int, follow: bool) -> int:
    """Show what the service printed: why it did not start, and what systemd did with it."""
    paths = find_paths()
    manager = find_installed(paths, os.environ)
    if manager is None:
        raise ServiceError("no service is installed for this home: `metricsd logs` shows the daemon's own log")
    words = manager.log_command(lines, follow=follow)
    try:
        return subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode
    except FileNotFoundError as error:
        raise ServiceError(f"{words[0]}: not found: `metricsd logs` shows the daemon's own log") from error


def _get_manager(paths: Paths) -> Manager:
    found = find_manager(paths, os.environ)
    if isinstance(found, Absent):
        raise ServiceError(f"{found.reason}: {found.instead}")
    return found


def _take_over(paths: Paths, service_pid: int | None) -> None:
    """End a daemon that runs in this home without the service: the service's own could not start beside it."""
    holder = find_holder(paths.lock)
    if holder is not None and holder.role == "daemon" and holder.pid != service_pid:
        stop_daemon(paths)


def _hints(found: Standing) -> list[str]:
    """Return what the user should know: what a service does not see of this shell, and when it ends."""
    hints = []
    settings = sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX) and name[len(ENV_PREFIX) :].lower().replace("_", ".", 1) in RULES
    )
    if settings:
        hints.append(f"the service does not see {', '.join(settings)} of this shell: put it into config.toml")
    proxies = sorted({name for name in _PROXIES if os.environ.get(name)})
    if proxies and found.file is not None:
        place = f"{find_paths().config_dir / 'environment'} (NAME=value, a line each)"
        where = place if found.manager == "systemd" else "`launchctl setenv`"
        hints.append(f"the service does not see {', '.join(proxies)} of this shell: put it into {where}")
    if found.installed and found.lingers is False:
        hints.append(LINGER)
    return hints


def _fields(found: Standing) -> dict[str, Any]:
    return {**found._asdict(), "file": None if found.file is None else str(found.file)}


def _print_absent(absent: Absent, installed: Manager | None, as_json: bool) -> int:
    file = None if installed is None else str(installed.standing().file)
    if as_json:
        fields = {"manager": None, "installed": installed is not None, "file": file, "running": False}
        click.echo(json.dumps({**fields, "reason": absent.reason, "instead": absent.instead}, indent=1))
    else:
        click.echo(f"no service: {absent.reason}")
        click.echo(f"  instead: {absent.instead}")
        if file is not None:
            click.echo(f"  but a unit lies in {file}; `metricsd service uninstall` removes it")
    return EXIT_OK


def _print_standing(found: Standing) -> None:
    if not found.installed:
        click.echo(f"{found.manager}: not installed; `metricsd service install` does it")
        return
    running = f"running (pid {found.pid})" if found.running else f"not running: {found.state}"
    says = f", {found.says}" if found.says else ""
    click.echo(f"{found.manager}: {running}{says}")
    click.echo(f"  unit: {found.file}{'' if found.enabled is not False else ' (not enabled)'}")
    if not found.current:
        click.echo("  it is not what this metricsd would write: `metricsd service install` brings it up to date")
    elif not found.running:
        click.echo("  why: `metricsd service logs`; start it: `metricsd up`")
    for hint in _hints(found):
        click.echo(f"  hint: {hint}")
