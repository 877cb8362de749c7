"""`uninstall`: takes metricsd out of the machine's ways, asks about the data, and says what remains.

The service's unit and exactly our hook entries of this home go; data goes only when that was said, by flag or at a
terminal. The cloud is asked first, so that a refusal leaves everything as it was. The package itself is the
installer's to remove.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import click

from metricsd.cli.status import gather
from metricsd.cli.status_text import counted
from metricsd.cli.updown import stop_daemon
from metricsd.client import CloudClient
from metricsd.config import Config, Paths, find_paths, load_config
from metricsd.doctor.finding import size_text
from metricsd.hooks import installer, report
from metricsd.hooks.places import find_places
from metricsd.hooks.report import Row
from metricsd.identity import Credentials, find_credentials, forget_login
from metricsd.instance import InstanceLock, find_holder
from metricsd.removal import find_data, find_rest, hook_program, remove_data
from metricsd.service.find import find_installed


class Choice(NamedTuple):
    """What goes beside unit and hook entries."""

    data: bool
    cloud: bool


@click.command()
@click.option("--delete-data/--keep-data", default=None, help="What was recorded here, and the login.")
@click.option("--delete-cloud-data/--keep-cloud-data", default=None, help="What this device sent to the cloud.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def uninstall(delete_data: bool | None, delete_cloud_data: bool | None, dry_run: bool, as_json: bool) -> None:
    """Stop the daemon, remove its service and our hook entries; data goes only if you say so.

    Without a terminal and without flags all data is kept.
    """
    paths = find_paths()
    config = load_config(paths)
    login = find_credentials(paths)
    asks = sys.stdin.isatty() and sys.stdout.isatty() and not (dry_run or as_json)
    choice = _choose(paths, config, login, delete_data, delete_cloud_data, asks=asks)
    done = _do(paths, config, login, choice, dry_run=dry_run)
    remains = _remains(paths, choice, login, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "done": done, "remains": remains}, indent=1))
        return
    for line in done:
        click.echo(f"would have {line}" if dry_run else line)
    click.echo("remains:")
    for line in remains:
        click.echo(f"  {line}")


def _choose(
    paths: Paths, config: Config, login: Credentials | None, data: bool | None, cloud: bool | None, *, asks: bool
) -> Choice:
    """Return what is to go: what flags say, else what a person answers, else nothing."""
    if cloud and login is None:
        raise click.UsageError("--delete-cloud-data: not logged in to a cloud")
    if cloud is None and login is not None and asks:
        cloud = click.confirm(f"Delete what this device sent to {login.url} too?", default=False)
    if data is None and asks and find_data(paths):
        status = gather(paths, config)
        events, size = status["store"]["events"], size_text(status["store"]["bytes"])
        unsent = status["sync"]["pending_events"] if login is not None and not cloud else 0
        warning = f"; {unsent} of them were never sent" if unsent else ""
        data = click.confirm(
            f"Delete what was recorded here ({counted(events, 'event')}, {size}{warning})?", default=False
        )
    return Choice(data=bool(data), cloud=bool(cloud))


def _do(paths: Paths, config: Config, login: Credentials | None, choice: Choice, *, dry_run: bool) -> list[str]:
    """Take everything out, in an order in which a failure leaves what can be tried again; return what was done."""
    done = []
    if choice.cloud and login is not None:
        done.append(_erase(config, login, dry_run=dry_run))
        if not dry_run:
            # The cloud revoked this device; a login that is none would only make the next start fail.
            forget_login(paths)
    manager = find_installed(paths, os.environ)
    if manager is not None and (dry_run or manager.uninstall()):
        done.append("removed the service")
    holder = find_holder(paths.lock) if dry_run else stop_daemon(paths)
    if holder is not None:
        done.append(f"stopped the daemon (pid {holder.pid})")
    for row in _our_rows(paths):
        target = installer.find_target(paths, Path(row.settings))
        if installer.uninstall(target, dry_run=dry_run).changed:
            done.append(f"removed our hook entries from {row.settings}")
    if choice.data and (found := find_data(paths)):
        if not dry_run:
            with InstanceLock.acquire(paths.lock, "uninstall"):
                remove_data(paths)
        done.append(f"deleted what was recorded here ({len(found)} files and folders in {paths.state_dir})")
    return done or ["nothing was set up"]


def _erase(config: Config, login: Credentials, *, dry_run: bool) -> str:
    if dry_run:
        return f"deleted what this device sent to {login.url}"

    async def ask() -> str:
        async with CloudClient(login.url, login.token, config.sync) as client:
            erased = await client.erase(login.device_id)
            gone = f"{counted(erased.events, 'event')} and {counted(erased.records, 'record')}"
            return f"deleted {gone} of this device from {login.url}"

    return asyncio.run(ask())


def _our_rows(paths: Paths) -> list[Row]:
    """Return the registrations that run this home's program; another home's are not ours to remove."""
    found = report.rows(paths, find_places(), os.environ)
    return [row for row in found if row.registration and str(row.registration.capture) in row.registration.commands]


def _remains(paths: Paths, choice: Choice, login: Credentials | None, *, dry_run: bool) -> list[str]:
    """Return in words what is still there, and how to remove it."""
    lines = []
    data = [] if dry_run and choice.data else find_data(paths)
    # Every command makes an empty spool, which is nothing that anybody recorded.
    if any(path.is_file() or any(part.is_file() for part in path.rglob("*")) for path in data):
        lines.append(f"what was recorded, in {paths.state_dir}: `metricsd uninstall --delete-data` deletes it")
    capture = hook_program(paths)
    for path in find_rest(paths):
        if path == capture.parent:
            lines.append(f"{capture}: sessions that run now still call it; delete it when they have ended")
        elif path == paths.cloud:
            lines.append(f"{path}: the cloud that was served here, with what all its devices sent")
        else:
            lines.append(str(path))
    if login is not None and not choice.cloud:
        lines.append(f"what this device sent to {login.url}")
    ours = {row.settings for row in _our_rows(paths)}
    for row in report.rows(paths, find_places(), os.environ):
        if row.registered and row.settings not in ours:
            lines.append(f"a registration of the hook that is not this home's: {row.settings} ({row.level})")
    lines.append("hook entries of other projects, if you installed any there: metricsd hooks uninstall --level local")
    lines.append("the program itself: pipx uninstall metricsd, or pip uninstall metricsd")
    return lines
