"""`migrate rollback`: take a migration back, or a part of it, or take a rollback back."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from metricsd import control
from metricsd.cli.migrate_run import NOTICE_TIMEOUT_S, open_store
from metricsd.clock import SystemClock
from metricsd.config import find_paths, load_config
from metricsd.errors import EXIT_OK, MetricsdError, UsageError

if TYPE_CHECKING:
    from metricsd.store.rollbacks import Done

TELL_EVERY_S = 0.5
KEPT_SHOWN_MAX = 10


@click.command()
@click.argument("run_id", metavar="ID")
@click.option("--full", is_flag=True, help="All of it (the default).")
@click.option("--from-checkpoint", "first_part", type=click.IntRange(1), metavar="K", help="Only its parts from K on.")
@click.option(
    "--where", "expressions", multiple=True, metavar="EXPR",
    help="Only what all of these name: session=ID, user=NAME, tool=NAME, rule=ID, since=TIME, until=TIME.",
)  # fmt: skip
@click.option("--overwrite-changed", is_flag=True, help="Also what somebody changed since; it is left alone otherwise.")
@click.option("--dry-run", is_flag=True, help="Say what it would come to; nothing is changed.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON lines; the last one is the result. Fields are only added."
)
def rollback(
    run_id: str,
    full: bool,
    first_part: int | None,
    expressions: tuple[str, ...],
    overwrite_changed: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Take back what migration ID brought, here and, with the next sync, everywhere.

    ID may be a rollback (`<migration>~<number>`): then that is taken back, and what it took out counts again.
    """
    from metricsd.migration.rollback import Asked, take_back

    if full and (first_part is not None or expressions):
        raise UsageError("--full takes everything back: leave --from-checkpoint and --where out")
    paths = find_paths()
    if not paths.store.exists():
        raise UsageError("there is no store yet, so there is nothing to take back")
    asked = Asked(run_id, first_part or 1, expressions, overwrite_changed, dry_run)
    clock = SystemClock()
    began = time.monotonic()
    with closing(open_store(paths, load_config(paths))) as store, _telling(as_json=as_json) as tell:
        done = take_back(paths, store, asked, now_us=clock.now_us(), progress=tell)
    if not dry_run:
        # It finds what is new at its next look anyway.
        with contextlib.suppress(MetricsdError):
            control.call(paths.state_dir, "edited", timeout_s=NOTICE_TIMEOUT_S)
    document = _document(done, time.monotonic() - began)
    click.echo(json.dumps(document) if as_json else _text(document))
    return EXIT_OK


def _document(done: Done, seconds: float) -> dict[str, Any]:
    return {
        "rollback_id": None if done.dry_run else done.id,
        "migration_id": done.run,
        "ok": True,
        "dry_run": done.dry_run,
        "parts": done.parts,
        "events": done.events,
        "records": done.records,
        "already": done.already,
        "kept_count": done.kept_count,
        "kept": [{"type": one.type, "id": one.id} for one in done.kept],
        "rest": {"before": done.rest_before, "after": done.rest_after, "rows": done.rest_rows},
        "duration_s": round(seconds, 3),
    }


def _text(found: dict[str, Any]) -> str:
    would = "would change" if found["dry_run"] else "changed"
    lines = [
        f"migration  {found['migration_id']}",
        f"{would:<11}{found['events']} events, {found['records']} records, in {found['parts']} parts",
        f"the rest   {found['rest']['rows']} digests of everything else, equal before and after",
    ]
    if found["kept_count"]:
        lines.append(f"kept       {found['kept_count']} that were changed since; --overwrite-changed takes them too:")
        lines += [f"           {one['type']} {one['id']}" for one in found["kept"][:KEPT_SHOWN_MAX]]
    if found["dry_run"]:
        lines.append("nothing was changed: this was a dry run")
    else:
        lines.append(f"take back  metricsd migrate rollback {found['rollback_id']}")
    return "\n".join(lines)


@contextlib.contextmanager
def _telling(*, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Give what tells how far it is: a bar on a terminal, JSON lines with --json, nothing on a pipe."""
    told_at = time.monotonic()

    def tell(part: int, parts: int) -> None:
        nonlocal told_at
        if as_json and time.monotonic() - told_at >= TELL_EVERY_S:
            told_at = time.monotonic()
            click.echo(json.dumps({"parts_done": part, "parts_total": parts}))

    if as_json or not sys.stderr.isatty():
        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("taking back", total=None)
        yield lambda part, parts: bar.update(task, completed=part, total=parts)
