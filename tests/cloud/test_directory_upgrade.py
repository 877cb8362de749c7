"""A control database of before administration: whoever was in stays in, and the log begins with the upgrade."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from metricsd.cloud import tenants
from metricsd.cloud.access import Scope
from metricsd.cloud.audit import verify
from metricsd.cloud.auth import digest_of, new_token
from metricsd.cloud.sqlite_control import FILE_NAME, LOOKUP_BYTES
from metricsd.schema import apply_steps, load_steps
from tests.cloud.support import CloudUnderTest, ok
from tests.fakes import FakeClock

STEPS = load_steps("metricsd.cloud.schema.directory")


def make_old(folder: Path, text: str) -> None:
    """Write a control database of the first schema step, with one tenant, user, device and device token."""
    folder.mkdir(mode=0o700)
    digest = digest_of(text)
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as db:
        for _ in apply_steps(db, STEPS[:1]):
            continue
        db.execute("INSERT INTO tenant VALUES (?, 'acme', ?, 1)", ("a" * 16, bytes(32)))
        db.execute("INSERT INTO user VALUES (1, ?, 'ann', 1)", ("a" * 16,))
        db.execute("INSERT INTO device VALUES (?, 1, 'laptop', NULL, 1)", ("d" * 32,))
        db.execute(
            "INSERT INTO token VALUES ('t1', ?, ?, 'device', 1, ?, 1, NULL, NULL)",
            (digest[:LOOKUP_BYTES], digest, "d" * 32),
        )


async def test_tokens_of_before_go_on_and_can_be_administered(tmp_path: Path, clock: FakeClock) -> None:
    """The old file is copied first, as every database is before its schema changes."""
    text = new_token(Scope.DEVICE)
    make_old(tmp_path / "cloud", text)
    async with CloudUnderTest(tmp_path / "cloud", clock=clock) as cloud:
        ok(await cloud.get("/capabilities", text))
        directory = cloud.backend.directory
        assert (await directory.audit_head()).seq == 0
        assert [(row.id, row.live, row.erased_at) for row in await directory.list_devices(None)] == [
            ("d" * 32, True, None)
        ]
        await tenants.suspend_tenant(directory, "acme", clock, actor="test")
        assert (await cloud.get("/capabilities", text)).status_code == 403
        found = await verify(directory)
        assert (found.fault, found.last.seq) == (None, 1)
    assert (tmp_path / "cloud" / f"{FILE_NAME}.schema-0001").is_file()
