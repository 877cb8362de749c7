"""Proves that a transaction changed what it was meant to change, and nothing else in the whole store.

Temporary triggers see every row that is inserted, changed or deleted, whoever does it, so the proof costs what was changed
and not what is there. Beside them, digests of everything outside the plan are taken before and after: of what reports read
for every other import batch and for all that hooks captured, and of every other record. Used inside one transaction; what
cannot be proven raises RollbackUnproven, which undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from metricsd import import_batch
from metricsd.errors import RollbackUnproven
from metricsd.store import batches, digests
from metricsd.store.connection import Store
from metricsd.store.digests import Digest

TOTALS = {
    "rollup": ("n", "failed", "duration_ms", "lines_added", "lines_removed"),
    "day_total": ("n", "failed", "duration_ms", "lines_added", "lines_removed"),
    "hour_total": ("n", "failed"),
}
"""Tables of totals: rows may move between the names of one batch, and their sums stay."""
ADDRESSED = {"record": ("type", "id"), "legacy_extra": ("kind", "key")}
FREE = frozenset(
    (
        "term",
        "retracted_batch",
        "retracted_total",
        "rollback",
        "rollback_before",
        "rollback_events",
        "conflict_log",
        "day_mark",
        "session_mark",
        "sqlite_sequence",
    )
)
"""Follow from the others, or are the rollback's own; an edit of a record in conflict changes its open entry."""
STATE_KEYS = ("hlc_mark", batches.RETRACTED_EVENTS, "rollup_zone")
_BEFORE_DROP = "seen_event", "seen_total", "seen_address", "seen_stray", "planned"
_TABLES = """
CREATE TEMP TABLE seen_event (old INTEGER, new INTEGER, n INTEGER, PRIMARY KEY (old, new)) STRICT;
CREATE TEMP TABLE seen_total (tbl TEXT, batch INTEGER, n INTEGER, failed INTEGER, duration_ms INTEGER, lines_added INTEGER,
    lines_removed INTEGER, PRIMARY KEY (tbl, batch)) STRICT;
CREATE TEMP TABLE seen_address (type TEXT, id TEXT, PRIMARY KEY (type, id)) STRICT;
CREATE TEMP TABLE seen_stray (what TEXT PRIMARY KEY) STRICT;
CREATE TEMP TABLE planned (type TEXT, id TEXT, PRIMARY KEY (type, id)) STRICT;
"""
_REST_RECORDS = """
SELECT type, id, fields, deleted FROM record AS r WHERE NOT EXISTS (
    SELECT 1 FROM temp.planned AS p WHERE p.type = r.type AND p.id = r.id)
"""
_REST_EXTRAS = """
SELECT kind, key, body FROM legacy_extra AS r WHERE NOT EXISTS (
    SELECT 1 FROM temp.planned AS p WHERE p.type = 'legacy_extra/' || r.kind AND p.id = r.key)
"""
_REST_TOTALS = """
SELECT coalesce(t.text, ''), sum(n), sum(failed), sum(duration_ms), sum(lines_added), sum(lines_removed)
FROM day_total AS d LEFT JOIN term AS t ON t.id = d.batch GROUP BY d.batch
"""
_REST_ROWS = """
SELECT t.text, count(*) FROM event AS e JOIN term AS t ON t.id = e.batch WHERE e.batch IS NOT NULL GROUP BY e.batch
"""


class Proof(NamedTuple):
    """The digest of everything outside the plan, before and after; `rows` went into it, `changed` addresses changed."""

    before: str
    after: str
    rows: int
    changed: int


class Witness:
    """Watches one transaction. `begin`, then `plan` what may change, `look`, change it, and `prove`."""

    def __init__(self, store: Store, is_planned: Callable[[str], bool]) -> None:
        """`is_planned` says of a batch's name whether its events may be switched."""
        self._store = store
        self._is_planned = is_planned
        self._before = Digest()

    def begin(self) -> None:
        """Start to watch."""
        for statement in _TABLES.split(";"):
            self._store.db.execute(statement)

    def plan(self, addresses: Iterable[tuple[str, str]]) -> None:
        """Allow these addresses to change."""
        self._store.db.executemany("INSERT OR IGNORE INTO temp.planned VALUES (?, ?)", addresses)

    def look(self) -> None:
        """Take the digest of the rest, and see everything from now on."""
        self._before = self._rest()
        for sql in _triggers(self._tables()):
            self._store.db.execute(sql)

    def prove(self) -> Proof:
        """Return the proof, or raise RollbackUnproven."""
        db = self._store.db
        problems = [str(what) for (what,) in db.execute("SELECT what FROM temp.seen_stray LIMIT 10")]
        sql = "SELECT type, id FROM temp.seen_address EXCEPT SELECT type, id FROM temp.planned LIMIT 10"
        problems += [f"{kind} {key}" for kind, key in db.execute(sql) if not self._may_switch(kind, key)]
        for old, new, _ in db.execute("SELECT old, new, n FROM temp.seen_event"):
            bases = {import_batch.base_of(self._store.terms.name(term) or "") for term in (old, new)}
            if len(bases) != 1 or not self._is_planned(*bases):
                problems.append(f"events moved from {self._store.terms.name(old)} to {self._store.terms.name(new)}")
        problems += self._uneven_totals()
        after = self._rest()
        if after != self._before:
            problems.append(f"the rest was {self._before.text()} and is {after.text()}")
        changed = int(db.execute("SELECT count(*) FROM temp.seen_address").fetchone()[0])
        if problems:
            raise RollbackUnproven(
                f"the rollback would have changed something else too ({'; '.join(problems[:3])}): nothing was changed, "
                "please report this with the output of `metricsd doctor`"
            )
        for name in _names(self._tables()):
            db.execute(f"DROP TRIGGER temp.{name}")
        for table in _BEFORE_DROP:
            db.execute(f"DROP TABLE temp.{table}")
        return Proof(self._before.text(), after.text(), after.rows, changed)

    def _may_switch(self, kind: str, key: str) -> bool:
        return kind == import_batch.TYPE and self._is_planned(import_batch.base_of(key))

    def _uneven_totals(self) -> list[str]:
        sums: dict[tuple[str, str], list[int]] = {}
        for table, batch, *values in self._store.db.execute("SELECT * FROM temp.seen_total"):
            base = import_batch.base_of(self._store.terms.name(batch) or "")
            known = sums.setdefault((table, base), [0] * len(values))
            sums[table, base] = [a + b for a, b in zip(known, values, strict=True)]
        return [
            f"{table} of {base or 'what hooks captured'}"
            for (table, base), values in sums.items()
            if any(values) or not self._is_planned(base)
        ]

    def _rest(self) -> Digest:
        """Return the digest of everything outside the plan. Order does not matter to it."""
        total = Digest()
        db = self._store.db
        for name, *values in db.execute(_REST_TOTALS):
            if not self._is_planned(import_batch.base_of(name)):
                total = total.plus(_one("totals", name, *values))
        for name, rows in db.execute(_REST_ROWS):
            if not self._is_planned(import_batch.base_of(name)):
                total = total.plus(_one("rows", name, rows))
        for kind, key, fields, deleted in db.execute(_REST_RECORDS):
            if not self._may_switch(kind, key):
                total = total.plus(_one(kind, key, fields, deleted))
        for row in db.execute(_REST_EXTRAS):
            total = total.plus(_one(*row))
        return total

    def _tables(self) -> list[str]:
        sql = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        return [name for (name,) in self._store.db.execute(sql) if name not in FREE]


def _one(*values: object) -> Digest:
    return Digest(1, int.from_bytes(digests.hash_of(*values), "big"))


def _names(tables: Iterable[str]) -> list[str]:
    return [f"see_{table}_{verb.lower()}" for table in tables for verb in ("INSERT", "UPDATE", "DELETE")]


def _triggers(tables: Iterable[str]) -> list[str]:
    """Return the triggers on these tables. Names are those of the schema; nothing of a stranger is in them."""
    found = []
    for table in tables:
        for verb in ("INSERT", "UPDATE", "DELETE"):
            body = _body(table, verb)
            name = f"see_{table}_{verb.lower()}"
            found.append(f"CREATE TEMP TRIGGER {name} AFTER {verb} ON main.{table} BEGIN {body}; END")
    return found


def _body(table: str, verb: str) -> str:
    sides = {"INSERT": ("NEW",), "UPDATE": ("OLD", "NEW"), "DELETE": ("OLD",)}[verb]
    # Never OR IGNORE: an upsert that fires a trigger puts its own way with conflicts in the place of the trigger's.
    stray = f"INSERT INTO seen_stray VALUES ('{table} ({verb.lower()})') ON CONFLICT DO NOTHING"
    if table in TOTALS:
        columns = TOTALS[table]
        return "; ".join(
            f"INSERT INTO seen_total (tbl, batch, n, failed, duration_ms, lines_added, lines_removed) VALUES ('{table}', "
            f"{side}.batch, {', '.join(_signed(side, name, columns) for name in TOTALS['rollup'])}) "
            "ON CONFLICT DO UPDATE SET n = n + excluded.n, failed = failed + excluded.failed, "
            "duration_ms = duration_ms + excluded.duration_ms, lines_added = lines_added + excluded.lines_added, "
            "lines_removed = lines_removed + excluded.lines_removed"
            for side in sides
        )
    if table in ADDRESSED:
        kind, key = ADDRESSED[table]
        prefix = "" if table == "record" else f"'{table}/' || "
        return f"INSERT INTO seen_address VALUES ({prefix}{sides[-1]}.{kind}, {sides[-1]}.{key}) ON CONFLICT DO NOTHING"
    if table == "state":
        keys = ", ".join(f"'{key}'" for key in STATE_KEYS)
        key = f"{sides[-1]}.key"
        return f"INSERT INTO seen_stray SELECT 'state ' || {key} WHERE {key} NOT IN ({keys}) ON CONFLICT DO NOTHING"
    if table == "event" and verb == "UPDATE":
        same = " AND ".join(f"OLD.{name} IS NEW.{name}" for name in _EVENT_COLUMNS)
        return (
            f"INSERT INTO seen_stray SELECT 'event (update)' WHERE NOT ({same}) ON CONFLICT DO NOTHING; "
            "INSERT INTO seen_event VALUES (coalesce(OLD.batch, 0), coalesce(NEW.batch, 0), 1) "
            "ON CONFLICT DO UPDATE SET n = n + 1"
        )
    return stray


_EVENT_COLUMNS = (
    "pos", "id", "at", "device", "type", "session", "tool", "outcome", "duration_ms", "call", "project", "branch",
    "subject", "input_bytes", "output_bytes", "lines_added", "lines_removed", "tags", "more",
)  # fmt: skip
"""Every column but `batch`; a test holds it to the schema."""


def _signed(side: str, name: str, columns: tuple[str, ...]) -> str:
    if name not in columns:
        return "0"
    return f"{side}.{name}" if side == "NEW" else f"-{side}.{name}"
