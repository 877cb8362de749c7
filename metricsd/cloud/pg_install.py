"""What the owner of a database makes there: the control schema, the roles, and a schema for each tenant.

Roles are of three kinds. The ingest login serves requests and owns nothing; each tenant has a role that cannot log in
and may use its own schema alone; the group of tenants' roles holds what all of them need of the database. A schema
step is one transaction that also notes its number, so a kill at any point leaves the old schema or the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metricsd.cloud.pg_errors import schema_not_ready
from metricsd.cloud.pg_names import CONTROL, new_roles, role, schema_of
from metricsd.cloud.pg_pool import Db
from metricsd.crash import crash_point
from metricsd.errors import SchemaTooNew, UsageError
from metricsd.schema import STEPS_PER_MAJOR, Step, load_steps

CONTROL_STEPS = load_steps("metricsd.cloud.schema.pg_control")
TENANT_STEPS = load_steps("metricsd.cloud.schema.pg_tenant")
TENANT_STEP_NEEDED = 1
"""The oldest step of a tenant's schema that this version serves; older ones are refused until they are brought up."""
OLDER_API_STEP_NEEDED = 4
"""The same for what it keeps for the older API: whoever is on an older one lacks that alone."""
_INSTALL_LOCK = 0x6D657472_69637364
_CONTROL_GRANTS = """
GRANT USAGE ON SCHEMA {control} TO "{ingest}";
GRANT SELECT ON {control}.instance, {control}.tenant, {control}.account, {control}.device, {control}.token,
    {control}.code, {control}.audit_head TO "{ingest}";
GRANT INSERT ON {control}.account, {control}.device, {control}.token, {control}.audit TO "{ingest}";
GRANT UPDATE (erased_at) ON {control}.device TO "{ingest}";
GRANT UPDATE (revoked_at) ON {control}.token TO "{ingest}";
GRANT UPDATE (attempts, spent_at) ON {control}.code TO "{ingest}";
GRANT UPDATE (seq, hash) ON {control}.audit_head TO "{ingest}";
GRANT SELECT, INSERT, UPDATE, DELETE ON {control}.spent TO "{ingest}";
GRANT USAGE ON ALL SEQUENCES IN SCHEMA {control} TO "{ingest}";
"""
_TENANT_GRANTS = """
GRANT USAGE ON SCHEMA "{schema}" TO "{schema}";
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{schema}";
GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" TO "{schema}";
"""


class Instance(NamedTuple):
    """An installation: its two roles and the step of its control schema."""

    ingest: str
    tenants: str
    step: int


async def find_instance(db: Db) -> Instance | None:
    """Return what is installed in the database, None if nothing is."""
    if await db.fetchval("SELECT to_regclass($1)::text", f"{CONTROL}.instance") is None:
        return None
    row = await db.fetchrow(f"SELECT ingest, tenants, step FROM {CONTROL}.instance")  # noqa: S608 - a constant
    if row is None:
        raise schema_not_ready("the control schema is empty: drop it and make the tenants again")
    return Instance(role(row[0]), role(row[1]), row[2])


async def install(db: Db) -> Instance:
    """Make the control schema and its roles, or bring them up to date; raise SchemaTooNew."""
    encoding = await db.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise UsageError(
            f"the database is in {encoding}: make it anew with createdb --encoding=UTF8 --template=template0"
        )
    await db.execute("SELECT pg_advisory_xact_lock($1)", _INSTALL_LOCK)
    found = await find_instance(db)
    if found is None:
        await db.execute(f"CREATE SCHEMA {CONTROL}")
        found = Instance(*new_roles(), 0)
        await make_roles(db, found)
    _check_major(found.step, CONTROL_STEPS, "the control schema")
    pending = [step for step in CONTROL_STEPS if step.number > found.step]
    if not pending:
        return found
    await db.execute(f"SET LOCAL search_path = {CONTROL}, pg_temp")
    for step in pending:
        await db.execute(step.sql)
    if found.step == 0:
        await db.execute("INSERT INTO instance VALUES (1, $1, $2, 0)", found.ingest, found.tenants)
    await db.execute("UPDATE instance SET step = $1", pending[-1].number)
    await db.execute(_CONTROL_GRANTS.format(control=CONTROL, ingest=found.ingest))
    return found._replace(step=pending[-1].number)


async def make_roles(db: Db, instance: Instance) -> None:
    """Make the ingest login and the group of tenants' roles on a server, where they are missing."""
    for name, kind in ((instance.ingest, "LOGIN NOINHERIT"), (instance.tenants, "NOLOGIN")):
        if await db.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name) is None:
            await db.execute(f'CREATE ROLE "{role(name)}" {kind}')
            await db.execute(f'GRANT "{role(name)}" TO CURRENT_USER')
        for right in ("CONNECT", "TEMPORARY"):
            if not await db.fetchval("SELECT has_database_privilege($1, current_database(), $2)", name, right):
                quoted = await db.fetchval("SELECT quote_ident(current_database())")
                await db.execute(f'GRANT {right} ON DATABASE {quoted} TO "{role(name)}"')


async def make_tenant(db: Db, instance: Instance, tenant_id: str) -> None:
    """Make a tenant's role and its schema, complete and empty."""
    name = schema_of(tenant_id)
    await db.execute(
        f'CREATE ROLE "{name}" NOLOGIN; GRANT "{name}" TO CURRENT_USER; GRANT "{name}" TO "{role(instance.ingest)}";'
        f' GRANT "{role(instance.tenants)}" TO "{name}"; CREATE SCHEMA "{name}"'
    )
    await _run_steps(db, name, TENANT_STEPS)


async def drop_tenant(db: Db, tenant_id: str) -> None:
    """Remove a tenant's schema with all it holds, and its role; what is gone already is fine."""
    name = schema_of(tenant_id)
    await db.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
    if await db.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name) is not None:
        await db.execute(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


async def upgrade_tenant(db: Db, tenant_id: str) -> int:
    """Run the steps that a tenant's schema lacks, all in this transaction; return how many. Raise SchemaTooNew."""
    name = schema_of(tenant_id)
    # Waits for the tenant's writers, and they for it.
    version = int(await db.fetchval(f'SELECT step FROM "{name}".head FOR UPDATE'))  # noqa: S608 - a generated name
    _check_major(version, TENANT_STEPS, f"the schema {name}")
    pending = [step for step in TENANT_STEPS if step.number > version]
    await _run_steps(db, name, pending)
    return len(pending)


async def _run_steps(db: Db, name: str, steps: Sequence[Step]) -> None:
    if not steps:
        return
    await db.execute(f'SET LOCAL search_path = "{name}", pg_temp')
    for step in steps:
        await db.execute(step.sql)
        crash_point("during_schema_step")
    await db.execute("UPDATE head SET step = $1", steps[-1].number)
    await db.execute(_TENANT_GRANTS.format(schema=name))


def _check_major(version: int, steps: Sequence[Step], what: str) -> None:
    newest = steps[-1].number
    if version // STEPS_PER_MAJOR > newest // STEPS_PER_MAJOR:
        raise SchemaTooNew(f"{what} is on step {version}, this metricsd knows up to {newest}: upgrade metricsd")
