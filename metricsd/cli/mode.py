"""`mode`: show how the daemon works and why, force another way for a while, look at what changed.

With a daemon the change is its own and takes effect before the command ends; without one it is kept for the next
start. A forced mode holds until its time is over or `metricsd mode auto`, through every restart.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from metricsd import control, modes
from metricsd.cli.spans import parse_span
from metricsd.cli.status import find_login, mode_section
from metricsd.clock import US_PER_S, SystemClock
from metricsd.config import Paths, find_paths, load_config
from metricsd.errors import EXIT_OK, AuthError, MetricsdError, UsageError
from metricsd.failover import Mode
from metricsd.instance import InstanceLock, find_holder
from metricsd.modes import time_text

AUTO = "auto"
ASK_TIMEOUT_S = 30.0
LOOK_TIMEOUT_S = 2.0
SPAN_US_MIN = US_PER_S

Section = dict[str, Any]


@click.command()
@click.argument("wanted", metavar="[MODE]", required=False, type=click.Choice([*(mode.value for mode in Mode), AUTO]))
@click.option("--for", "span", metavar="TIME", help="How long a forced mode holds, for example 2h; else until `auto`.")
@click.option("--history", is_flag=True, help="List the latest changes, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def mode(wanted: str | None, span: str | None, history: bool, as_json: bool) -> int:
    """Show the mode and why it is in force, or force one: hybrid, local_only, remote_only, degraded; auto ends that.

    Exit codes: 0 done, 2 wrong usage, 5 remote_only without a login.
    """
    paths = find_paths()
    if history:
        if wanted or span:
            raise UsageError("--history only looks: give no mode and no --for with it")
        _print_history(paths, as_json)
        return EXIT_OK
    if span is not None and wanted in (None, AUTO):
        raise UsageError("--for needs a mode to force, for example `metricsd mode local_only --for 2h`")
    if wanted is not None:
        _change(paths, wanted, span)
    found = _look(paths)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo(_in_words(found))
        if wanted is not None and not _daemon_runs(paths):
            click.echo("no daemon runs: this is in force from its next start", err=True)
    return EXIT_OK


def _look(paths: Paths) -> Section:
    """Return what the daemon says, else what its file does."""
    try:
        return control.call(paths.state_dir, "mode", timeout_s=LOOK_TIMEOUT_S)
    except MetricsdError:
        return mode_section(paths, find_login(paths))


def _change(paths: Paths, wanted: str, span: str | None) -> None:
    until_us = None
    if span is not None:
        until_us = SystemClock().now_us() + max(int(parse_span(span, "--for").total_seconds() * US_PER_S), SPAN_US_MIN)
        if time_text(until_us) is None:
            raise UsageError(f"--for {span[:40]!r}: too long")
    if wanted == Mode.REMOTE_ONLY and find_login(paths) is None:
        raise AuthError("remote_only needs a cloud: run `metricsd login URL` first")
    if _daemon_runs(paths):
        control.call(paths.state_dir, "mode", timeout_s=ASK_TIMEOUT_S, mode=wanted, until_us=until_us)
        return
    _change_file(paths, wanted, until_us)


def _change_file(paths: Paths, wanted: str, until_us: int | None) -> None:
    from metricsd.governor import Governor
    from metricsd.logs import log_to_terminal

    log_to_terminal("error")
    config = load_config(paths)
    with InstanceLock.acquire(paths.lock, "mode"):
        governor = Governor(paths, config.failover, SystemClock())
        if wanted == AUTO:
            governor.release()
        else:
            governor.force(Mode(wanted), until_us)


def _daemon_runs(paths: Paths) -> bool:
    holder = find_holder(paths.lock)
    return holder is not None and holder.role == "daemon"


def _in_words(found: Section) -> str:
    since = f" since {found['since']}" if found["since"] else ""
    if not found["forced"]:
        return f"{found['current']}{since}: {found['reason']}"
    until = f"until {found['forced_until']}" if found["forced_until"] else "until `metricsd mode auto`"
    return f"{found['current']}{since}: forced {until}"


def _print_history(paths: Paths, as_json: bool) -> None:
    state = modes.find_state(paths.mode)
    changes = () if state is None else state.history[::-1]
    if as_json:
        rows = [
            {"at": time_text(change.at), "mode": change.mode.value, "reason": modes.reason_text(change)}
            for change in changes
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    if not changes:
        click.echo("no daemon ran here yet, so nothing has changed", err=True)
    for change in changes:
        click.echo(f"{_local(change.at)}  {change.mode.value:11}  {modes.reason_text(change)}")


def _local(micros: int) -> str:
    return datetime.fromtimestamp(micros / US_PER_S, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
