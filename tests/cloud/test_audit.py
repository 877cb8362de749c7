"""ASVS 16.3.2, 16.4.2: every administrative act and enrolment is in a log whose every change is found."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metricsd.cloud import tenants
from metricsd.cloud.access import Act, Scope
from metricsd.cloud.audit import GENESIS, chained, find_break, find_wrong_end, verify
from metricsd.cloud.enrolment import create_code
from metricsd.cloud.policies import set_policy
from metricsd.cloud.registry import AuditHead, AuditRow
from metricsd.cloud.sqlite_control import FILE_NAME
from tests.cloud.support import CloudUnderTest, ok
from tests.postgres_fixtures import execute

ME = "cli:someone"
START = AuditHead(0, GENESIS)
acts = st.builds(
    Act,
    actor=st.text(max_size=8),
    action=st.text(max_size=8),
    tenant=st.text(max_size=8),
    subject=st.text(max_size=8),
    at=st.integers(0, 1 << 50),
    detail=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3),
)


async def everything(cloud: CloudUnderTest) -> list[str]:
    """Do each thing that is logged, once; return the actions in order."""
    directory, clock = cloud.backend.directory, cloud.clock
    await tenants.create_tenant(directory, "acme", clock, actor=ME)
    await tenants.add_user(directory, "acme", "bob", clock, actor=ME)
    text = await tenants.create_token(directory, "acme", "ann", Scope.ENROL, clock, actor=ME)
    device = ok(await cloud.post("/devices", {"name": "laptop"}, text))
    code, _ = await create_code(directory, "acme", "ann", 60, clock, actor=ME)
    ok(await cloud.post("/devices", {"name": "desk"}, code))
    [token, *_] = await directory.list_tokens("acme")
    _, renewed = await tenants.rotate_token(directory, token.id, 60, clock, actor=ME)
    await tenants.revoke_token(directory, renewed.id, clock, actor=ME)
    await set_policy(cloud.backend, "acme", b"version = 1\n", "team.toml", clock, actor=ME)
    ok(await cloud.http.delete(f"/sync/v1/devices/{device['device_id']}/data", headers=bearer_of(device)))
    [desk] = [row for row in await directory.list_devices("acme") if row.name == "desk"]
    await tenants.revoke_device(directory, desk.id, clock, actor=ME)
    await tenants.revoke_user(directory, "acme", "ann", clock, actor=ME)
    await tenants.suspend_tenant(directory, "acme", clock, actor=ME)
    await tenants.resume_tenant(directory, "acme", clock, actor=ME)
    await tenants.drop_tenant(cloud.backend, "acme", clock, actor=ME)
    return [
        "tenant.created", "user.added", "token.created", "device.enrolled", "code.created", "device.enrolled",
        "token.rotated", "token.revoked", "policy.set", "device.erased", "device.revoked", "user.revoked",
        "tenant.suspended", "tenant.resumed", "tenant.dropped",
    ]  # fmt: skip


def bearer_of(device: dict[str, str]) -> dict[str, str]:
    return {"authorization": f"Bearer {device['device_token']}"}


async def test_every_act_is_logged_with_who_did_it(cloud: CloudUnderTest) -> None:
    """In order, also those of requests, whose actor is a token or a code; and the log holds no secret."""
    expected = await everything(cloud)
    rows = await cloud.backend.directory.audit_page(0, 100)
    assert [row.act.action for row in rows] == expected
    assert {row.act.tenant for row in rows} == {"acme"}
    kinds = {row.act.action: row.act.actor.split(":")[0] for row in rows if row.act.actor != ME}
    assert kinds == {"device.enrolled": "code", "device.erased": "token"}
    assert [row.act.actor.split(":")[0] for row in rows if row.act.action == "device.enrolled"] == ["token", "code"]
    assert not any("md" in word and "_" in word for row in rows for word in row.act.detail.values())
    assert (await verify(cloud.backend.directory)).fault is None


async def test_what_changed_nothing_is_not_logged(cloud: CloudUnderTest) -> None:
    """The second revocation, suspension or erasure, and what was refused."""
    device = await cloud.device()
    directory, clock = cloud.backend.directory, cloud.clock
    [token] = [token for token in await directory.list_tokens(None) if token.device is None]
    lengths = []
    for _ in range(3):
        await tenants.revoke_token(directory, token.id, clock, actor=ME)
        ok(await cloud.http.delete(f"/sync/v1/devices/{device.id}/data", headers=bearer_of(device.enrolled)))
        await tenants.suspend_tenant(directory, "acme", clock, actor=ME)
        lengths.append((await directory.audit_head()).seq)
        await tenants.resume_tenant(directory, "acme", clock, actor=ME)
        await tenants.revoke_device(directory, device.id, clock, actor=ME)
    assert lengths == [lengths[0], lengths[0] + 2, lengths[0] + 4]


def chain(log: list[Act]) -> list[AuditRow]:
    rows: list[AuditRow] = []
    before = START
    for act in log:
        row = chained(before, act)
        rows.append(row)
        before = AuditHead(row.seq, row.hash)
    return rows


def fault_of(rows: list[AuditRow], kept: AuditHead) -> str | None:
    last = AuditHead(rows[-1].seq, rows[-1].hash) if rows else START
    return find_break(START, rows) or find_wrong_end(last, kept)


@given(st.lists(acts, min_size=1, max_size=8), st.data())
def test_a_changed_removed_or_reordered_row_is_found(log: list[Act], data: st.DataObject) -> None:
    """Whatever was logged and whichever row it is; the untouched log has no fault."""
    rows = chain(log)
    kept = AuditHead(rows[-1].seq, rows[-1].hash)
    assert fault_of(rows, kept) is None
    at = data.draw(st.integers(0, len(rows) - 1))
    other = data.draw(acts.filter(lambda act: act != log[at]))
    assert fault_of([*rows[:at], replace(rows[at], act=other), *rows[at + 1 :]], kept) is not None
    assert fault_of([*rows[:at], *rows[at + 1 :]], kept) is not None
    assert fault_of([*rows, chained(kept, other)], kept) is not None
    if at:
        swapped = [*rows]
        swapped[at], swapped[at - 1] = swapped[at - 1], swapped[at]
        assert fault_of(swapped, kept) is not None
        renumbered = [replace(row, seq=number) for number, row in enumerate(swapped, 1)]
        assert log[at] == log[at - 1] or fault_of(renumbered, kept) is not None


TAMPERING = {
    "changed": ("UPDATE audit SET subject = 'x' WHERE seq = 3", "row 3 was changed"),
    "detail": ("UPDATE audit SET detail = '{}' WHERE seq = 4", "row 4 was changed"),
    "removed": ("DELETE FROM audit WHERE seq = 3", "row 3 is missing"),
    "first removed": ("DELETE FROM audit WHERE seq = 1", "row 1 is missing"),
    "last removed": ("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)", "row 15 was written"),
    "all removed": ("DELETE FROM audit", "row 15 was written"),
    "reordered": (
        "UPDATE audit SET seq = -seq WHERE seq IN (3, 4);"
        "UPDATE audit SET seq = CASE seq WHEN -3 THEN 4 ELSE 3 END WHERE seq < 0",
        "row 3 was changed",
    ),
}


@pytest.mark.parametrize("how", TAMPERING)
async def test_tampering_with_the_database_is_found(cloud: CloudUnderTest, how: str) -> None:
    """By whoever can write the database; who only serves cannot even do it."""
    await everything(cloud)
    statement, fault = TAMPERING[how]
    await tamper(cloud, statement)
    found = await verify(cloud.backend.directory)
    assert found.fault is not None and fault in found.fault


async def tamper(cloud: CloudUnderTest, statement: str) -> None:
    """Change the log as its owner could, having been refused without the owner's means."""
    if isinstance(cloud.place, Path):
        with closing(sqlite3.connect(cloud.folder / FILE_NAME)) as db:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.executescript(statement)
            db.rollback()
            db.executescript("DROP TRIGGER audit_is_not_changed; DROP TRIGGER audit_is_not_deleted;")
            db.executescript(statement)
        return
    instance = await cloud.backend.directory.instance()  # type: ignore[attr-defined]
    path = "SET search_path = metricsd_control"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(cloud.place, f'SET ROLE "{instance.ingest}"; {path}; {statement}')
    await execute(cloud.place, f"{path}; {statement}")


@pytest.mark.only_sqlite
async def test_a_chain_that_was_made_anew_is_found_by_what_was_written_down(cloud: CloudUnderTest) -> None:
    """Consistent in itself, so that only a head kept elsewhere tells."""
    await everything(cloud)
    directory = cloud.backend.directory
    rows = await directory.audit_page(0, 100)
    noted = AuditHead(rows[9].seq, rows[9].hash)
    assert (await verify(directory, noted)).fault is None
    forged = chain([replace(row.act, actor="cli:nobody") if row.seq == 3 else row.act for row in rows])
    with closing(sqlite3.connect(cloud.folder / FILE_NAME)) as db:
        db.executescript("DROP TRIGGER audit_is_not_changed; DROP TRIGGER audit_is_not_deleted;")
        for row in forged:
            db.execute("UPDATE audit SET actor = ?, hash = ? WHERE seq = ?", (row.act.actor, row.hash, row.seq))
        db.execute("UPDATE audit_head SET hash = ?", (forged[-1].hash,))
        db.commit()
    assert (await verify(directory)).fault is None
    found = await verify(directory, noted)
    assert found.fault == "row 10 is not the one that was expected"
    later = await verify(directory, AuditHead(99, b""))
    assert later.fault is not None and "row 99 is missing" in later.fault


async def test_a_log_of_many_pages_is_verified_while_it_grows(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An act that comes between the last page and the look at the end is no fault."""
    from metricsd.cloud import audit

    monkeypatch.setattr(audit, "PAGE_ROWS", 4)
    directory = cloud.backend.directory
    for number in range(10):
        await tenants.create_tenant(directory, f"t{number}", cloud.clock, actor=ME)
    real = directory.audit_head

    async def grow() -> AuditHead:
        monkeypatch.setattr(directory, "audit_head", real)
        await tenants.create_tenant(directory, "late", cloud.clock, actor=ME)
        return await real()

    monkeypatch.setattr(directory, "audit_head", grow)
    found = await verify(directory)
    assert found.fault is None and found.last.seq == 11
