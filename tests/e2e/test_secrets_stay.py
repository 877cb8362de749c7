"""200 planted secrets of more than 30 kinds go through the whole pipe: no byte of them is kept or sent."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import zstandard

from tests.decode.support import cases
from tests.e2e.support import homes, wait_for
from tests.fault_proxy import FaultProxy
from tests.secrets import plant, planted_secrets, traces

SECRETS = planted_secrets(200)
SECRETS_PER_PAYLOAD = 12
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def frames(traffic: bytes) -> bytes:
    """Return the traffic with every zstd body in it decompressed behind it."""
    found, at = [traffic], traffic.find(ZSTD_MAGIC)
    while at >= 0:
        found.append(zstandard.ZstdDecompressor().decompressobj().decompress(traffic[at:]))
        at = traffic.find(ZSTD_MAGIC, at + 4)
    return b"\n".join(found)


@pytest.mark.timeout(240)
def test_no_secret_is_in_database_wal_log_wire_or_cloud(tmp_path: Path) -> None:
    """Raw bytes of every file of both homes, and of everything that went over the wire, are searched."""
    with homes(tmp_path, "cloud", "one", sync_interval_s=3600) as (cloud, one):
        cloud.start_ready("--with-cloud")
        port = int(cloud.status()["sync"]["url"].rsplit(":", 1)[1])
        token = cloud.json("cloud", "token", "create", "--tenant", "local", "--user", "ann")["token"]
        count = 0
        (one.spool / "new").mkdir(parents=True)
        for number, case in enumerate(cases()):
            for offset in range(SECRETS_PER_PAYLOAD):
                _, secret = SECRETS[(number * SECRETS_PER_PAYLOAD + offset) % len(SECRETS)]
                for payload in islice(plant(case.payload, secret), 1):
                    if "tool_use_id" in payload:
                        payload = {**payload, "tool_use_id": f"toolu_{count}"}
                    line = {"v": 1, "s": 1_790_000_000, "app": case.app, "event": case.event, "payload": payload}
                    (one.spool / "new" / f"{case.event}-{count}-1-0.jsonl").write_text(json.dumps(line) + "\n")
                    count += 1
        with FaultProxy(port, seed=1, record=True) as proxy:
            one.run("login", f"http://127.0.0.1:{proxy.port}", "--token-stdin", stdin=token)
            one.start_ready()
            wait_for(lambda: one.status()["spool"]["pending_files"] == 0, "everything is taken in")
            one.json("sync", "--now")
            wait_for(lambda: one.status()["sync"]["pending_events"] == 0, "everything is pushed")
            traffic = bytes(proxy.recorded)
        shown = one.run("privacy", "show", "--limit", "1000").stdout.encode()
        rows = one.query("SELECT count(*) FROM event")[0][0]
        assert rows == count
        wire = frames(traffic)
        assert wire.count(b"PostToolUse") > 50, "the search must see the bodies, or this test proves nothing"
        # The daemons run on: the WAL is there to be searched.
        files = {path: path.read_bytes() for home in (cloud, one) for path in home.folder.rglob("*") if path.is_file()}
        assert any(path.name.endswith("-wal") for path in files)
        files |= {tmp_path / "wire": wire, tmp_path / "privacy show": shown}
        leaks = [
            (kind, path.relative_to(tmp_path))
            for kind, secret in SECRETS
            for word in traces(secret)
            for path, data in files.items()
            if word.encode() in data
        ]
        assert leaks == []
