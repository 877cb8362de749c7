"""`sync`: one round with the cloud now, through the daemon, or in the foreground when there is none.

In the foreground it holds the daemon's lock and first takes in what hooks left in the spool, so the result is the
same either way. `--dry-run` says what would be sent and asks nobody.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn

import click

from metricsd import control
from metricsd.cli.status_text import counted
from metricsd.clock import SystemClock
from metricsd.config import Config, Paths, find_paths, load_config
from metricsd.errors import (
    EXIT_FAILED,
    EXIT_LOGIN,
    EXIT_OK,
    AuthError,
    CloudError,
    DaemonNotRunning,
    MetricsdError,
    ModeForced,
)
from metricsd.instance import InstanceLock, find_holder

if TYPE_CHECKING:
    from metricsd.sync.report import DryRun, Report

TIMEOUT_S = 300.0

Section = dict[str, Any]


@click.command()
@click.option("--now", is_flag=True, help="Sync at once; this is what `sync` does anyway.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, without asking the cloud.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=TIMEOUT_S,
    show_default=True,
    help="Seconds to wait; what was settled by then stays settled.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def sync(now: bool, dry_run: bool, timeout_s: float, as_json: bool) -> int:
    """Sync with the cloud now and say what moved.

    Exit codes: 0 done, 1 the cloud cannot be reached, 3 a forced local_only wants nothing sent, 5 log in first.
    """
    paths = find_paths()
    config = load_config(paths)
    if dry_run:
        return _print_dry_run(asyncio.run(_dry_run(paths, config)), as_json)
    report = sync_now(paths, config, timeout_s)
    code = int(report.pop("exit_code", EXIT_FAILED))
    _print_report(report, as_json)
    if not report["ok"]:
        _fail(report, code)
    return code


def sync_now(paths: Paths, config: Config, timeout_s: float) -> Section:
    """Sync through the daemon, or in the foreground when there is none; return the report with its `exit_code`."""
    report = _through_daemon(paths, timeout_s)
    return _in_foreground(paths, config, timeout_s) if report is None else report


def _through_daemon(paths: Paths, timeout_s: float) -> Section | None:
    """Return the daemon's report; None when there is no daemon."""
    holder = find_holder(paths.lock)
    if holder is None or holder.role != "daemon":
        return None
    try:
        return control.call(paths.state_dir, "sync", timeout_s=timeout_s)
    except DaemonNotRunning as error:
        raise MetricsdError(f"the daemon (pid {holder.pid}) is still starting: try again in a moment") from error


def _in_foreground(paths: Paths, config: Config, timeout_s: float) -> Section:
    from metricsd.logs import log_to_terminal

    log_to_terminal("error")
    with InstanceLock.acquire(paths.lock, "sync"):
        return asyncio.run(_round(paths, config, timeout_s))


async def _round(paths: Paths, config: Config, timeout_s: float) -> Section:
    import msgspec

    from metricsd.governor import Governor
    from metricsd.intake import open_intake
    from metricsd.sync.engine import Engine
    from metricsd.syncing import until_done

    clock = SystemClock()
    # Nobody switches to and fro here, so what this round meets counts at once.
    governor = Governor(paths, config.failover._replace(dwell_s=0.0), clock)
    if governor.is_silent_by_hand:
        raise ModeForced
    intake = open_intake(paths, config, clock)
    store = intake.store
    engine = Engine(paths, store, config.sync, is_gentle=lambda: governor.is_gentle, on_outcome=governor.note)

    async def do_round() -> Report:
        report = await engine.tick(reason="demand")
        report.mode = governor.mode.value
        return report

    try:
        intake.take_all()
        report = await asyncio.wait_for(until_done(do_round), timeout_s)
    except TimeoutError as error:
        raise MetricsdError(
            f"not done within {timeout_s:g} s: what was settled stays so, the next sync goes on from there"
        ) from error
    finally:
        await engine.close()
        store.close()
    return {**msgspec.to_builtins(report), "exit_code": report.exit_code}


async def _dry_run(paths: Paths, config: Config) -> DryRun:
    from metricsd.logs import log_to_terminal
    from metricsd.store.connection import Store
    from metricsd.sync.engine import Engine

    log_to_terminal("error")
    store = Store.open(paths.store, backups=paths.backups)
    try:
        return await Engine(paths, store, config.sync).dry_run()
    finally:
        store.close()


def _print_dry_run(found: DryRun, as_json: bool) -> int:
    import msgspec

    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=1))
        return EXIT_OK
    where = found.url or "nowhere: not logged in (`metricsd login URL`)"
    click.echo(
        f"would send {counted(found.pending_events, 'event')} and {counted(found.pending_records, 'record')} to {where}"
    )
    for event in found.events:
        click.echo(msgspec.json.encode(event).decode())
    return EXIT_OK


def _print_report(report: Section, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    moved = (
        f"sent {counted(report['pushed_events'], 'event')} and {counted(report['pushed_records'], 'record')}, "
        f"got {report['pulled_events']} and {report['pulled_records']}, in {report['duration_ms']} ms"
    )
    for note in report["notes"]:
        click.echo(f"note: {note}", err=True)
    if report["ok"]:
        click.echo(moved)
    if report["rejected"]:
        click.echo(f"{len(report['rejected'])} items were refused; next: metricsd quarantine list", err=True)
    if report["conflicts"]["resolved"]:
        how = ", ".join(f"{count} by {name}" for name, count in sorted(report["conflicts"]["by_strategy"].items()))
        click.echo(f"conflicts resolved: {how}; next: metricsd conflicts list --all", err=True)
    if report["conflicts"]["open"]:
        click.echo(f"{report['conflicts']['open']} conflicts are open; next: metricsd conflicts list", err=True)


def _fail(report: Section, code: int) -> NoReturn:
    """Leave with the round's own sentence and exit code."""
    error = AuthError(report["error"]["message"]) if code == EXIT_LOGIN else CloudError(report["error"]["message"])
    raise error
