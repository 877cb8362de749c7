"""Cases for a policy: TOML that says what two sides did to a record and what must come of it. Parsed here, run by the CLI.

policy = "team.toml"                    # beside this file; without it the policies in force
[[case]]
name = "tags unite"
entity = "session"
base = { tags = ["a"] }
local = { tags = ["a", "b"] }
remote = { tags = ["a", "c"] }          # or "deleted"
later = "local"                         # who edited later; "remote" without it
expect = { tags = ["a", "b", "c"] }     # fields not named may be anything; or "deleted"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from metricsd.conflict import Conflict, Version
from metricsd.errors import PolicyError
from metricsd.fields import ENTITIES, FieldKind, problem
from metricsd.hlc import Stamp
from metricsd.policy import FILE_BYTES_MAX
from metricsd.protocol import FieldValue

CASES_MAX = 1000
DELETED = "deleted"
_KEYS = ("name", "entity", "project", "base", "local", "remote", "later", "expect")
_BASE_AT, _EARLY_AT, _LATE_AT = 1_000, 2_000, 3_000


class Case(NamedTuple):
    """One case. `expect` None asks for the deletion."""

    name: str
    subject: Conflict
    project: str | None
    expect: dict[str, FieldValue] | None


class Cases(NamedTuple):
    """A file of cases, and the policy file that it names."""

    cases: list[Case]
    policy: Path | None


def find_cases(file: Path) -> Cases | None:
    """Return the cases in a file, None if it holds none (a policy, then); raise PolicyError for a wrong one."""
    try:
        with file.open("rb") as stream:
            text = stream.read(FILE_BYTES_MAX).decode("utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise PolicyError(f"{file}: cannot be read ({error.strerror}): check the name and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{file}: not valid TOML: {error}") from error
    if "case" not in document:
        return None
    rows, named = document["case"], document.get("policy")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or len(rows) > CASES_MAX:
        raise PolicyError(f"{file}: case: expected at most {CASES_MAX} tables, each written as [[case]]")
    if named is not None and not isinstance(named, str):
        raise PolicyError(f"{file}: policy: expected the name of a policy file")
    cases = [_case(f"{file}: case {number}", row) for number, row in enumerate(rows, 1)]
    return Cases(cases, file.absolute().parent / named if named else None)


def sample_conflicts() -> list[Case]:
    """Return a conflict on each field that a record can have: both sides changed it, the cloud's edit is the later."""
    found = []
    for entity, fields in ENTITIES.items():
        for name, field in fields.items():
            base, local, remote = _samples(field.kind)
            subject = Conflict(
                entity,
                "sample",
                _version({name: base}, _BASE_AT, "base"),
                _version({name: local}, _EARLY_AT, "local"),
                _version({name: remote}, _LATE_AT, "remote"),
            )
            found.append(Case(f"{entity}.{name}", subject, None, None))
    return found


def _samples(kind: FieldKind) -> tuple[FieldValue, FieldValue, FieldValue]:
    match kind:
        case FieldKind.TEXT:
            return "old", "here", "cloud"
        case FieldKind.LIST:
            return ["old", "kept"], ["kept", "here"], ["old", "kept", "cloud"]
        case FieldKind.COUNT | FieldKind.TIME:
            return 10, 15, 12
        case FieldKind.NUMBER:
            return 0.5, 0.7, 0.6
        case FieldKind.FLAG:
            return None, True, False


def _case(where: str, row: dict[str, Any]) -> Case:
    unknown = sorted(row.keys() - set(_KEYS))
    if unknown:
        raise PolicyError(f"{where}: {unknown[0]}: unknown key; expected one of {', '.join(_KEYS)}")
    entity, later, name = row.get("entity", "session"), row.get("later", "remote"), row.get("name", where)
    if entity not in ENTITIES:
        raise PolicyError(f"{where}: entity: expected one of {', '.join(ENTITIES)}, not {entity!r}")
    if later not in ("local", "remote"):
        raise PolicyError(f"{where}: later: expected local or remote, not {later!r}")
    project = row.get("project")
    if not isinstance(name, str) or not isinstance(project, str | None):
        raise PolicyError(f"{where}: name and project: expected text")
    sides = {side: _fields(f"{where}: {side}", entity, row.get(side)) for side in ("local", "remote", "expect")}
    base = _fields(f"{where}: base", entity, row["base"]) if "base" in row else None
    at = {"local": _LATE_AT if later == "local" else _EARLY_AT, "remote": _LATE_AT if later == "remote" else _EARLY_AT}
    old = _version(base, _BASE_AT, "base") if "base" in row else None
    local, remote = (_changed(old, sides[side], at[side], side) for side in ("local", "remote"))
    return Case(name, Conflict(entity, "case", old, local, remote), project, sides["expect"])


def _fields(where: str, entity: str, body: Any) -> dict[str, FieldValue] | None:
    """Return a side's fields; None for a deleted one."""
    if body == DELETED:
        return None
    if not isinstance(body, dict):
        raise PolicyError(f"{where}: expected a table of fields or 'deleted'")
    for name, value in body.items():
        wrong = problem(entity, name, value)
        if wrong is not None:
            raise PolicyError(f"{where}: {name}: {wrong}")
    return body


def _version(fields: dict[str, FieldValue] | None, at_ms: int, device: str) -> Version:
    stamp = Stamp(at_ms, 0, device).text()
    if fields is None:
        return Version(deleted=True, stamp=stamp)
    return Version(fields=fields, stamps=dict.fromkeys(fields, stamp))


def _changed(base: Version | None, fields: dict[str, FieldValue] | None, at_ms: int, device: str) -> Version:
    """Return a side whose unchanged fields have the base's stamps; a field that it does not name is unchanged."""
    if fields is None or base is None:
        return _version(fields, at_ms, device)
    stamp = Stamp(at_ms, 0, device).text()
    changed = {name: value for name, value in fields.items() if base.fields.get(name) != value}
    return Version(fields=base.fields | changed, stamps=base.stamps | dict.fromkeys(changed, stamp))
