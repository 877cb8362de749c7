"""`policy`: which conflict policies are in force, whether they are right, and what another one would change.

Nothing here changes a policy or a record: a policy is a file, and the daemon takes it into force when it changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metricsd.cli.status_text import counted
from metricsd.config import find_paths
from metricsd.errors import EXIT_FAILED, EXIT_OK, PolicyError, UsageError
from metricsd.policy_places import FOLDER, LAYERS, Places, files_of, places_of
from metricsd.resources import data_folder

if TYPE_CHECKING:
    from metricsd.policy import Finding, InForce, Policy, Rule
    from metricsd.sync.cases import Case

LOGGED_MAX = 10_000
"""Logged conflicts that a dry run looks at, the newest first."""

Row = dict[str, Any]
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def policy() -> None:
    """See, check and try conflict policies."""


@policy.command("list")
@_json
def list_files(as_json: bool) -> int:
    """List every policy file, the ones asked first on top, and the shipped ones that are not in force."""
    from metricsd.policy import load

    places = places_of(find_paths())
    rows = list(_files(places, load(places)))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return EXIT_OK
    for row in rows:
        mark = "in force" if row["in_force"] else "off"
        about = f"{row['name']}, version {row['version']}, {counted(row['rules'], 'rule')}" if row["name"] else "broken"
        click.echo(f"{row['layer']:8} {mark:8}  {about}  {row['source']}")
        if row["error"]:
            click.echo(f"         {row['error']}")
    return EXIT_OK


@policy.command()
@_json
def show(as_json: bool) -> int:
    """Print the policies in force with their rules, in the order in which they are asked."""
    from metricsd.policy import load

    found = load(places_of(find_paths()))
    if as_json:
        delete = {"policy": found.delete.policy, "source": found.delete.source}
        document = {**found.report(), "delete": delete, "policies": [_policy_row(one) for one in found.policies]}
        click.echo(json.dumps(document, indent=1))
        return EXIT_OK
    for one in found.policies:
        click.echo(f"{one.layer}: {one.name}, version {one.version} ({one.source})")
        for rule in (*one.rules, *([one.default] if one.default else [])):
            click.echo(f"  {rule.line:>4}  {rule.match.text():42} {_does(rule)}")
    click.echo(f"deletes: {found.delete.policy} ({found.delete.source})")
    for error in found.errors:
        click.echo(f"! {error}")
    return EXIT_OK


@policy.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@_json
def lint(file: Path | None, strict: bool, as_json: bool) -> int:
    """Check a policy FILE, or every file of this installation; exit 1 when something is wrong.

    Finds mistakes with their lines, rules that never apply, unknown entities and fields, clash rules that do not fit,
    plug-ins that may not run, and set-ups that do not converge.
    """
    found = _lint_all() if file is None else _lint_one(file, "user")
    bad = [one for one in found if one.severity == "error" or strict]
    if as_json:
        click.echo(json.dumps([one._asdict() for one in found], indent=1))
    else:
        for one in found:
            click.echo(f"{one.source}:{one.line}: {one.severity}: {one.message}")
        errors = sum(one.severity == "error" for one in found)
        said = f"{counted(errors, 'error')}, {counted(len(found) - errors, 'warning')}"
        click.echo(said if found else "ok", err=True)
    return EXIT_FAILED if bad else EXIT_OK


@policy.command("test")
@_file
@_json
def try_out(file: Path, as_json: bool) -> int:
    """Run a FILE of cases; or show what a policy FILE makes of a sample conflict on each field.

    A file of cases has [[case]] tables with base, local, remote and expect (docs/extending.md); exit 1 when one fails.
    """
    from metricsd.policy import load
    from metricsd.sync.cases import find_cases, sample_conflicts
    from metricsd.sync.plugins import Pool

    in_force = load(places_of(find_paths()))
    found = find_cases(file)
    named = file if found is None else found.policy
    with closing(Pool()) as pool:
        tried = in_force if named is None else _with(in_force, named)
        rows = [
            _run(tried, case, pool, found is None) for case in (sample_conflicts() if found is None else found.cases)
        ]
    failed = [row for row in rows if not row["ok"]]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            click.echo(f"{'ok  ' if row['ok'] else 'FAIL'}  {row['name']}: {_outcome(row)}")
        click.echo(f"{counted(len(rows), 'case')}, {len(failed)} failed", err=True)
    return EXIT_FAILED if failed else EXIT_OK


@policy.command()
@click.argument("entity")
@click.argument("field")
@click.option("--tag", "tags", multiple=True, help="A tag of the record; may be given again.")
@click.option("--project", help="The record's project.")
@_json
def explain(entity: str, field: str, tags: tuple[str, ...], project: str | None, as_json: bool) -> int:
    """Say which rule decides FIELD of an ENTITY (session, tool_metric, import_batch), and which others were asked."""
    from metricsd.fields import COMPUTED, ENTITIES, find_field
    from metricsd.policy import load

    if entity not in ENTITIES:
        raise UsageError(f"there is no entity {entity!r}: expected one of {', '.join(ENTITIES)}")
    if field in COMPUTED:
        raise UsageError(f"{field} never conflicts: {COMPUTED[field]}")
    in_force = load(places_of(find_paths()))
    rule = in_force.lookup(entity, field, frozenset(tags), project)
    asked = in_force.candidates(entity, field, frozenset(tags), project)
    known = find_field(entity, field)
    document = {
        "entity": entity,
        "field": field,
        "known": known is not None,
        "kind": known.kind.value if known else None,
        **_rule_row(rule),
        "policy_sha256": in_force.sha256,
        "considered": [{**_rule_row(one), "chosen": one.source == rule.source} for one in asked],
        "error": "; ".join(in_force.errors) or None,
    }
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return EXIT_OK
    what = f"a {document['kind']}" if known else "a field that this version does not know"
    click.echo(f"{entity}.{field}, {what}: {_does(rule)}\n  by {rule.source} ({rule.layer}, {rule.match.text()})")
    for one in asked:
        if one.source != rule.source:
            click.echo(f"  not {one.source} ({one.layer}): {_does(one)}")
    for error in in_force.errors:
        click.echo(f"! {error}")
    return EXIT_OK


@policy.command("dry-run")
@_file
@_json
def dry_run(file: Path, as_json: bool) -> int:
    """Show what would have been decided otherwise with FILE as your policy, over the logged conflicts."""
    from metricsd.policy import load
    from metricsd.sync.plugins import Pool

    in_force = load(places_of(find_paths()))
    tried = _with(in_force, file)
    with closing(Pool()) as pool:
        looked, rows = _compare(in_force, tried, pool)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            click.echo(
                f"{row['id']:>6}  {row['type']} {json.dumps(row['record_id'])[1:-1]}  {row['strategy_was']} -> {row['strategy']}"
            )
            for name, change in row["fields"].items():
                click.echo(f"        {name}: {json.dumps(change['was'])} -> {json.dumps(change['would_be'])}")
    click.echo(f"{len(rows)} of {looked} logged conflicts would be decided otherwise", err=True)
    return EXIT_OK


def _files(places: Places, in_force: InForce) -> Iterator[Row]:
    from metricsd.policy import parse, read_policy

    active = {one.source: one for one in in_force.policies}
    shipped = sorted(data_folder(FOLDER).glob("*.toml"))
    for layer in LAYERS:
        for file in files_of(places, layer) if layer != "shipped" else shipped:
            error, found = None, None
            try:
                found = parse(read_policy(file, trusted=layer == "shipped"), file, layer=layer)
            except PolicyError as wrong:
                error, found = str(wrong), active.get(str(file))
            yield {
                "layer": layer,
                "name": found.name if found else None,
                "version": found.version if found else None,
                "sha256": found.sha256 if found else None,
                "rules": len(found.rules) if found else 0,
                "source": str(file),
                "in_force": str(file) in active,
                "error": error,
            }


def _lint_all() -> list[Finding]:
    places = places_of(find_paths())
    return [one for layer in LAYERS for file in files_of(places, layer) for one in _lint_one(file, layer)]


def _lint_one(file: Path, layer: str) -> list[Finding]:
    from metricsd.policy import lint_file

    if not file.exists():
        raise UsageError(f"{file}: there is no such file")
    return lint_file(file, layer=layer)[1]


def _with(in_force: InForce, file: Path) -> InForce:
    from metricsd.policy import parse, read_policy
    from metricsd.sync.trial import with_file

    # A file that is only tried may lie anywhere; one in force may not.
    return with_file(in_force, parse(read_policy(file, trusted=True), file))


def _run(in_force: InForce, case: Case, pool: Any, sample: bool) -> Row:
    from metricsd.sync.trial import decide

    found = decide(in_force, case.subject, case.project, pool)
    version = found.resolution.version
    got: Any = "deleted" if version.deleted else version.fields
    expect: Any = "deleted" if case.expect is None else case.expect
    if sample:
        good = not found.problems
    elif version.deleted or case.expect is None:
        good = version.deleted and case.expect is None
    else:
        good = all(version.fields.get(name) == value for name, value in case.expect.items())
    row = {"name": case.name, "ok": good, "got": got, "decided": dict(found.resolution.decided), "rules": found.rules}
    return {**row, "expect": None if sample else expect, "problems": found.problems}


def _outcome(row: Row) -> str:
    text = f"{json.dumps(row['got'])}  {', '.join(f'{name} {how}' for name, how in row['decided'].items())}"
    text += "" if row["ok"] or row["expect"] is None else f"\n      expected {json.dumps(row['expect'])}"
    return text + "".join(f"\n      ! {problem}" for problem in row["problems"])


def _compare(in_force: InForce, tried: InForce, pool: Any) -> tuple[int, list[Row]]:
    """Return how many logged conflicts were looked at, and a row for each that would be decided otherwise."""
    from metricsd.conflict import Conflict
    from metricsd.store import conflict_log, sessions
    from metricsd.store.connection import Store
    from metricsd.sync.trial import decide, differences

    path = find_paths().store
    if not path.exists():
        return 0, []
    rows = []
    with closing(Store.open(path)) as store:
        # In a settled one nothing was left to decide.
        logged = [one for one in conflict_log.list_all(store, LOGGED_MAX) if one.state != conflict_log.State.SETTLED]
        for entry in logged:
            subject = Conflict(entry.type, entry.record_id, entry.base, entry.local, entry.remote)
            project = sessions.project_of(store, entry.type, entry.record_id)
            was, strategy = entry.result, entry.strategy
            if was is None:
                resolution = decide(in_force, subject, project, pool).resolution
                was, strategy = resolution.version, resolution.strategy
            found = decide(tried, subject, project, pool)
            changes = differences(was, found.resolution.version)
            if changes:
                rows.append(
                    {
                        "id": entry.id,
                        "type": entry.type,
                        "record_id": entry.record_id,
                        "state": entry.state,
                        "strategy_was": strategy,
                        "strategy": found.resolution.strategy,
                        "rules": found.rules,
                        "fields": {name: {"was": old, "would_be": new} for name, (old, new) in changes.items()},
                        "problems": found.problems,
                    }
                )
    return len(logged), rows


def _policy_row(one: Policy) -> Row:
    return {
        "layer": one.layer,
        "name": one.name,
        "version": one.version,
        "source": one.source,
        "sha256": one.sha256,
        "default": _rule_row(one.default) if one.default else None,
        "rules": [_rule_row(rule) for rule in one.rules],
    }


def _rule_row(rule: Rule) -> Row:
    return {
        "strategy": rule.strategy,
        "clash": rule.clash,
        "per": rule.per,
        "match": rule.match._asdict(),
        "lock": rule.lock,
        "override": rule.override,
        "plugin": rule.plugin.name if rule.plugin else None,
        "fallback": rule.fallback if rule.strategy == "custom" else None,
        "layer": rule.layer,
        "source": rule.source,
    }


def _does(rule: Rule) -> str:
    """Return what a rule does, in a few words."""
    text = rule.strategy
    if rule.strategy == "merge_fields":
        text += f" ({rule.clash})"
    if rule.plugin is not None:
        text += f" ({rule.plugin.name}, else {rule.fallback})"
    text += " per record" if rule.per == "record" else ""
    return text + (" locked" if rule.lock else "") + (" override" if rule.override else "")
