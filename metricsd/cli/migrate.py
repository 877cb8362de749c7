"""`metricsd migrate`: bring in what older tools left behind, see how it went, and take it out again.

Each command has a file of its own, imported when it is used; `plan`, `list` and `status`, which only look, are here.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import click

from metricsd.cli.parts import Parts
from metricsd.cli.table import text_table, write_json
from metricsd.config import Paths, find_paths
from metricsd.errors import EXIT_OK, UsageError

_COMMANDS = {
    "report": "metricsd.cli.migrate_report:report",
    "rollback": "metricsd.cli.migrate_rollback:rollback",
    "run": "metricsd.cli.migrate_run:run",
    "verify": "metricsd.cli.migrate_report:verify",
}
_SIZE_STEP = 1024


@click.group(cls=Parts, parts=_COMMANDS)
def migrate() -> None:
    """Bring in the history that older hooks, transcripts or an export left, with proof and a way back."""


@migrate.command()
@click.argument("source", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def plan(source: str | None, as_json: bool) -> int:
    """Say what SOURCE holds and how each file would be read; nothing is changed.

    Without SOURCE it is the folders of the older hooks in the home folder.
    """
    from metricsd.migration.survey import survey
    from metricsd.migration.work import Work

    roots = [Path(one) for one in sources_of(source)]
    with tempfile.TemporaryDirectory(prefix="metricsd-plan-") as folder:
        work = Work(Path(folder) / "work.db")
        try:
            survey(work, roots, progress=lambda size: None)
            files = [
                {"name": file.name, "kind": file.kind.value, "bytes": file.size, "lines": file.lines, "why": file.why}
                for file in work.files()
            ]
            totals = work.totals()
        finally:
            work.close()
    if as_json:
        click.echo(json.dumps({"sources": [str(root) for root in roots], **totals, "read": files}))
        return EXIT_OK
    click.echo(_plan_text(roots, totals, files))
    return EXIT_OK


@migrate.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; fields are only added.")
def list_runs(as_json: bool) -> int:
    """List all migrations, the newest first."""
    from metricsd.migration import state

    rows = [_row(folder) for folder in reversed(state.list_runs(find_paths()))]
    if as_json:
        write_json(rows, sys.stdout)
        return EXIT_OK
    if not rows:
        click.echo("no migrations; `metricsd migrate plan` looks for what there is to bring in")
        return EXIT_OK
    cells = [[str(row["id"]), row["state"], str(row["loaded"]), str(row["rejected"]), row["source"]] for row in rows]
    click.echo(text_table(cells, ["migration", "state", "loaded", "rejected", "source"], left=2))
    return EXIT_OK


@migrate.command()
@click.argument("run_id", metavar="ID", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def status(run_id: str | None, as_json: bool) -> int:
    """Say where a migration stands: the newest one, or the one that ID names.

    Exit codes: 0 done or at work, 1 it waits for somebody.
    """
    from metricsd.migration import state

    paths = find_paths()
    runs = state.list_runs(paths)
    if run_id is None and not runs:
        raise UsageError("no migrations; `metricsd migrate plan` looks for what there is to bring in")
    folder = runs[-1] if run_id is None else state.find(paths, run_id)
    row = _row(folder) | _stored(paths, folder.id)
    if as_json:
        click.echo(json.dumps(row))
    else:
        click.echo(_status_text(row))
    return EXIT_OK if row["state"] in ("done", "running", "rolled_back", "planned") else 1


def sources_of(source: str | None) -> list[str]:
    """Return the absolute paths of what to read; without one the folders of the older hooks. Raises UsageError."""
    from metricsd.migration.discover import default_sources

    if source is not None:
        path = Path(source).expanduser().absolute()
        if not path.exists():
            raise UsageError(f"{path}: there is no such folder or file")
        return [str(path)]
    found = [str(path) for path in default_sources(Path.home())]
    if not found:
        raise UsageError("there are no folders of the older hooks in the home folder: name a SOURCE")
    return found


def _row(folder: Any) -> dict[str, Any]:
    run = folder.read()
    summary = run.summary
    is_running = run.state == "running"
    stands = run.state.value if not is_running or folder.is_at_work() else "cut_off"
    counts = [summary.sessions, summary.tool_events, summary.other_events] if summary is not None else []
    return {
        "id": run.id,
        "state": stands,
        "source": ", ".join(run.options.sources),
        "to": list(run.options.to),
        "dry_run": run.options.dry_run,
        "created_us": run.created_us,
        "updated_us": run.updated_us,
        "seconds": round(run.seconds, 3),
        "reason": run.reason,
        "loaded": sum(tally.loaded for tally in counts),
        "rejected": sum(tally.rejected for tally in counts),
        "verdict": summary.confidence.verdict if summary is not None else None,
        "report_dir": str(folder.report),
    }


def _stored(paths: Paths, run_id: str) -> dict[str, Any]:
    """Return how far the store holds a run, which it knows better than the run itself."""
    import msgspec

    from metricsd.migration.model import Counts
    from metricsd.store.summary import snapshot

    if not paths.store.exists():
        return {"parts": 0}
    counts, parts = Counts(), 0
    with snapshot(paths.store) as db:
        for (text,) in db.execute("SELECT counts FROM import_part WHERE run = ?", (run_id,)):
            counts, parts = counts + msgspec.json.decode(text, type=Counts), parts + 1
        taken_back = [
            {"id": one, "at_us": at, **{name: done[name] for name in ("events", "records", "kept_count")}, "undo": undo}
            for one, at, done, undo in (
                (one, at, json.loads(done), json.loads(what)["undo"])
                for one, at, done, what in db.execute(
                    "SELECT id, at, done, what FROM rollback WHERE run = ? ORDER BY length(id), id", (run_id,)
                )
            )
        ]
    return {
        "parts": parts,
        "rollbacks": taken_back,
        "sessions": msgspec.to_builtins(counts.sessions),
        "tool_events": msgspec.to_builtins(counts.tool_events),
        "other_events": msgspec.to_builtins(counts.other_events),
    }


def _status_text(row: dict[str, Any]) -> str:
    lines = [
        f"migration {row['id']}: {row['state']}",
        f"source     {row['source']}",
        f"to         {', '.join(row['to'])}",
    ]
    for name in ("sessions", "tool_events", "other_events"):
        tally = row.get(name)
        if tally and tally["source"]:
            fates = ", ".join(f"{tally[fate]} {fate}" for fate in ("loaded", "merged", "skipped", "rejected"))
            lines.append(f"{name.replace('_', ' '):<11}{tally['source']} read: {fates}")
    for one in row.get("rollbacks", ()):
        what = f"undone {one['undo']}: brought back" if one["undo"] else f"rolled back {one['id']}: took out"
        lines.append(f"{what} {one['events']} events, {one['records']} records")
    if row["reason"]:
        lines.append(f"reason     {row['reason']}")
    if row["state"] in ("cut_off", "paused", "failed"):
        lines.append(f"go on      metricsd migrate run --resume {row['id']}")
    return "\n".join(lines)


def _plan_text(roots: list[Path], totals: dict[str, int], files: list[dict[str, Any]]) -> str:
    kinds: Counter[str] = Counter(file["kind"] for file in files if file["kind"] != "ignored")
    lines = [f"source     {', '.join(map(str, roots))}"]
    lines += [
        f"{kind.replace('_', ' '):<16}{count} file{'' if count == 1 else 's'}" for kind, count in sorted(kinds.items())
    ]
    lines.append(
        f"in all     {size_text(totals['bytes'])}, {totals['lines']} lines, {totals['sessions']} sessions of older hooks"
    )
    why: Counter[str] = Counter(file["why"] for file in files if file["kind"] == "ignored")
    lines += [f"not read   {count} file{'' if count == 1 else 's'}: {reason}" for reason, count in sorted(why.items())]
    if not kinds:
        lines.append("there is nothing to bring in")
    else:
        lines.append("to try it without storing anything: metricsd migrate run --dry-run SOURCE")
    return "\n".join(lines)


def size_text(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < _SIZE_STEP:
            return f"{size:.0f} {unit}"
        size /= _SIZE_STEP
    return f"{size:.1f} GiB"
