"""`metricsd migrate run`: bring history in, or go on with a run that was cut off or paused.

It writes into the store beside a running daemon, as an edit does, and tells it at the end, so that what is new is synced
soon. The last line of `--json` is the summary; what leads to it is progress.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metricsd import control
from metricsd.cli.migrate import sources_of
from metricsd.cli.migrate_progress import Teller
from metricsd.clock import SystemClock
from metricsd.config import Config, Paths, find_paths, load_config
from metricsd.errors import EXIT_FAILED, EXIT_OK, MetricsdError, MigrationPaused, UsageError
from metricsd.instance import InstanceLock, find_holder

if TYPE_CHECKING:
    from metricsd.config import Sync
    from metricsd.migration.load_cloud import Cloud, Connection
    from metricsd.migration.model import Sink, Summary
    from metricsd.migration.runner import Runner
    from metricsd.migration.state import Options, Run, RunFolder
    from metricsd.migration.work import Work
    from metricsd.store.connection import Store
    from metricsd.store.quarantine import Reject

NOTICE_TIMEOUT_S = 1.0
SYNC_TIMEOUT_S = 3600.0
DATABASE_BATCH = 2500
"""Events in one COPY: two to a part, so that the database works while the next one is made."""
STORE, CLOUD, BOTH = "store", "cloud", "both"
_ROLE = "migrate"


@click.command()
@click.argument("source", required=False)
@click.option(
    "--to", "target", type=click.Choice([STORE, CLOUD, BOTH]), default=STORE, show_default=True,
    help="Where to bring it: the local store, the cloud that this machine is logged in to, or both.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Read, check and count; store nothing.")
@click.option("--resume", "run_id", metavar="ID", help="Go on with a run that was cut off or paused.")
@click.option("--accept-rejects", is_flag=True, help="Go on although more than 1 % of the entries are rejected.")
@click.option(
    "--users", type=click.Choice(["create", "map", "default"]), default="create", show_default=True,
    help="How names of people become ids: of the name itself, by a file, or one for all.",
)  # fmt: skip
@click.option("--users-file", metavar="FILE", help="JSON object of names and ids, for --users map.")
@click.option("--default-user", metavar="ID", help="The id for --users default, and for who is not in the file.")
@click.option("--rules", multiple=True, metavar="FILE", help="A file with rules of your own; may be given again.")
@click.option(
    "--batch",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Events in one request, for --to cloud.",
)
@click.option(
    "--dsn-from", "dsn_variable", metavar="VARIABLE",
    help="For an administrator, with --to cloud: straight into the PostgreSQL whose DSN this environment variable holds.",
)  # fmt: skip
@click.option("--tenant", metavar="NAME", help="The tenant there, for --dsn-from.")
@click.option("--user", metavar="NAME", help="The user there whose history it is, for --dsn-from.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines; the last one is the summary.")
def run(
    source: str | None,
    target: str,
    dry_run: bool,
    run_id: str | None,
    accept_rejects: bool,
    users: str,
    users_file: str | None,
    default_user: str | None,
    rules: tuple[str, ...],
    batch: int,
    dsn_variable: str | None,
    tenant: str | None,
    user: str | None,
    as_json: bool,
) -> int:
    """Bring the history of SOURCE in: a folder or file of older hooks, transcripts, or an export.

    Without SOURCE it is the folders of the older hooks in the home folder. Running it again brings nothing twice.
    Exit codes: 0 the migration passed, 1 it did not, or it waits for somebody.
    """
    from metricsd.migration import state
    from metricsd.migration.people import make_people
    from metricsd.migration.state import Options

    paths = find_paths()
    config = load_config(paths)
    if run_id is not None:
        if source is not None:
            raise UsageError("--resume takes the source of the run: leave SOURCE out")
        folder = state.find(paths, run_id)
    else:
        make_people(users, users_file, default_user)
        if dsn_variable is not None and (target != CLOUD or tenant is None or user is None):
            raise UsageError("--dsn-from goes with --to cloud, --tenant and --user")
        options = Options(
            sources=tuple(sources_of(source)), to=_targets(target), dry_run=dry_run, accept_rejects=accept_rejects,
            users=users, users_file=_absolute(users_file), default_user=default_user,
            rules=tuple(str(_absolute(one)) for one in rules), batch=batch,
            dsn_variable=dsn_variable, tenant=tenant, user=user,
        )  # fmt: skip
        folder = state.create(paths, options, SystemClock().now_us())
    summary = _work(paths, config, folder, accept_rejects=accept_rejects, as_json=as_json)
    print_summary(summary, as_json)
    return EXIT_OK if summary.ok else EXIT_FAILED


def _work(paths: Paths, config: Config, folder: RunFolder, *, accept_rejects: bool, as_json: bool) -> Summary:
    """Run, or go on; what ends a run before its time is in the summary and on stderr."""
    from msgspec.structs import replace

    from metricsd.logs import log_to_terminal
    from metricsd.migration.state import RunState

    log_to_terminal("error")
    with folder.locked(), Teller(as_json=as_json) as teller:
        found = folder.read()
        if found.state is RunState.ROLLED_BACK:
            raise UsageError(
                f"migration {found.id} is rolled back: roll that back first (`metricsd migrate status {found.id}` names it),"
                " or run the migration anew, which brings back what its source still has"
            )
        if found.state is RunState.DONE and found.summary is not None:
            raise UsageError(
                f"migration {found.id} is {found.state.value}: `metricsd migrate report {found.id}` shows it"
            )
        if accept_rejects:
            found = replace(found, options=replace(found.options, accept_rejects=True))
        runner = make_runner(paths, config, (folder, found), teller, asks=_asks(as_json))
        try:
            summary = runner.go()
        except MigrationPaused as paused:
            summary = runner.unfinished(str(paused))
        except MetricsdError as error:
            if not as_json:
                raise
            summary = runner.unfinished(str(error))
    if found.options.to == (STORE, CLOUD) and summary.ok and not summary.dry_run:
        summary = _synced(paths, config, summary)
    elif not found.options.dry_run:
        # It finds what is new at its next look anyway.
        with contextlib.suppress(MetricsdError):
            control.call(paths.state_dir, "edited", timeout_s=NOTICE_TIMEOUT_S)
    return summary


def make_runner(paths: Paths, config: Config, run: tuple[RunFolder, Run], teller: Teller, *, asks: bool) -> Runner:
    """Return what works on a run of this home. Its folder is locked by the caller; `asks` says that somebody can answer."""
    from metricsd.migration import proving
    from metricsd.migration.runner import Home, Runner

    folder, found = run

    reached: list[Connection] = []

    def sinks(work: Work) -> Sequence[Sink]:
        return _sinks(paths, config, folder, found.options, work, reached)

    def cloud() -> proving.Cloud:
        # The targets were made just before, and are reached in the same way.
        return proving.Cloud(reached[-1].login, reached[-1].settings, reached[-1].connect)

    def accept(rejected: int, source: int) -> bool:
        teller.pause()
        return asks and click.confirm(f"{rejected} of {source} entries are rejected. Go on?", err=True)

    is_stored = STORE in found.options.to
    proof = None if found.options.dry_run else proving.RunProof(folder, paths.store, cloud=None if is_stored else cloud)
    return Runner(folder, found, Home(SystemClock(), sinks, proof, teller.tell, accept))


def _sinks(
    paths: Paths, config: Config, folder: RunFolder, options: Options, work: Work, reached: list[Connection]
) -> list[Sink]:
    from metricsd.migration.load import DryRun, StoreSink

    if options.dry_run:
        return [DryRun(work, open_store(paths, config) if paths.store.exists() else None)]
    # The label syncs, so it names the run and not the folder: that one's name may be a person's.
    label = f"migration {folder.id}"
    store = open_store(paths, config)
    if STORE in options.to:
        return [StoreSink(store, folder.id, label)]
    batch = options.batch
    if options.dsn_variable is None:
        reached.append(_login(paths, config))
    else:
        reached.append(_database(config, options, work))
        batch = DATABASE_BATCH
    return [_cloud_sink(reached[-1], work, store, batch=batch, label=label)]


def _cloud_sink(connection: Connection, work: Work, store: Store, *, batch: int, label: str) -> Sink:
    """Return the cloud as the only target: the store keeps what is rejected, and knows what hooks captured."""
    from metricsd.migration.load import Hooked
    from metricsd.migration.load_cloud import CloudSink
    from metricsd.store import quarantine

    def keep(rejects: Sequence[Reject]) -> None:
        with store.transaction():
            quarantine.add_all(store, rejects, each_max=0)

    return CloudSink(
        connection, work, SystemClock(), batch=batch, label=label, keep=keep, is_hooked=Hooked(store).is_hooked,
        let_go=store.close,
    )  # fmt: skip


def _login(paths: Paths, config: Config) -> Connection:
    """Return the way to the cloud that this machine is logged in to."""
    from metricsd.client import CloudClient
    from metricsd.identity import get_credentials
    from metricsd.migration.load_cloud import Connection

    return Connection(get_credentials(paths), config.sync, CloudClient)


def _database(config: Config, options: Options, work: Work) -> Connection:
    """Return the way to an administrator's database."""
    from metricsd.cli import migrate_database
    from metricsd.migration.load_cloud import Connection

    variable, tenant, user = options.dsn_variable or "", options.tenant or "", options.user or ""
    login = migrate_database.login(work, variable, tenant, user)

    def connect(url: str, token: str, settings: Sync) -> Cloud:
        return migrate_database.connect(variable, tenant, user, login.device_id)

    return Connection(login, config.sync, connect, bytes_max=migrate_database.REQUEST_BYTES_MAX)


def _synced(paths: Paths, config: Config, summary: Summary) -> Summary:
    """Sync what was stored, and say if it did not get through: the store has it, and the next sync goes on."""
    from msgspec.structs import replace

    from metricsd.cli.sync import sync_now

    try:
        report = sync_now(paths, config, SYNC_TIMEOUT_S)
        why = "" if report["ok"] else str((report.get("error") or {}).get("message") or "the cloud cannot be reached")
    except MetricsdError as error:
        why = str(error)
    if not why:
        return summary
    return replace(
        summary, ok=False, reason=f"the store has everything, the cloud not yet: {why}; the next sync goes on"
    )


def open_store(paths: Paths, config: Config) -> Store:
    """Open the store to write beside a daemon, if there is one; without one, finish a repair that was begun."""
    from metricsd.intake import prepare
    from metricsd.store import salvage
    from metricsd.store.connection import Store

    clock = SystemClock()
    if find_holder(paths.lock) is None:
        with InstanceLock.acquire(paths.lock, _ROLE):
            prepare(paths)
            salvage.finish(paths.store)
            if salvage.is_needed(paths):
                salvage.repair(paths, clock)
            store = Store.open(paths.store, clock=clock, backups=paths.backups)
    else:
        store = Store.open(paths.store, clock=clock, backups=paths.backups)
    store.limit(config.store.bytes_max)
    return store


def _targets(target: str) -> tuple[str, ...]:
    return (STORE, CLOUD) if target == BOTH else (target,)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - pathlib would keep `..`


def _asks(as_json: bool) -> bool:
    return not as_json and sys.stdin.isatty() and sys.stderr.isatty()


def print_summary(summary: Summary, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
        return
    click.echo(f"migration {summary.migration_id}")
    if summary.state == "done" and _print_report(Path(summary.report_dir)):
        return
    found: dict[str, Any] = msgspec.to_builtins(summary)
    click.echo("passed" if summary.ok else "not passed")
    for name in ("sessions", "tool_events", "other_events"):
        tally = found[name]
        if tally["source"]:
            fates = ", ".join(f"{tally[fate]} {fate}" for fate in ("loaded", "merged", "skipped", "rejected"))
            click.echo(f"{name.replace('_', ' '):<14}{tally['source']} read: {fates}")
    click.echo(
        f"{'took':<14}{summary.duration_s:.1f} s, {summary.records_per_s:,.0f} entries/s, {summary.peak_rss_mb:.0f} MiB"
    )
    if summary.dry_run:
        click.echo("nothing was stored: this was a dry run")
    if summary.reason:
        click.echo(summary.reason, err=True)


def _print_report(folder: Path) -> bool:
    """Print what the report says, in some lines; return whether there is one."""
    from metricsd.migration import report
    from metricsd.migration.report_text import lines

    if not (folder / report.JSON).exists():
        return False
    for line in lines(report.read(folder)):
        click.echo(printable(line))
    click.echo(f"\nfor a browser: {folder / report.HTML}")
    return True


def printable(text: str) -> str:
    """Return text without what could steer a terminal: names of files come from strangers."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
