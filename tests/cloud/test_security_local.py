"""Controls of the surfaces on a laptop (control socket, spool, files, the client), named after OWASP ASVS 5.0.

Most of what these surfaces promise is tested where they live; docs/security.md lists those tests beside these.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from metricsd import spool
from metricsd.errors import LineRejected
from metricsd.policy import find_weakness
from tests.homes import Home, until
from tests.secrets import planted_secrets, traces
from tests.sync.test_client import (
    test_a_damaged_token_is_refused_before_it_is_sent as test_v4_2_1_a_token_cannot_forge_a_header,
)
from tests.sync.test_client import (
    test_a_redirect_is_not_followed as test_v12_3_2_the_token_is_never_sent_on,
)
from tests.sync.test_client import (
    test_an_address_that_must_not_be_used_says_why as test_v12_2_1_an_address_without_tls_is_loopback_or_refused,
)
from tests.sync.test_client import (
    test_certificates_are_verified as test_v12_3_4_the_certificate_and_its_name_are_verified,
)

__all__ = [
    "test_v4_2_1_a_token_cannot_forge_a_header",
    "test_v12_2_1_an_address_without_tls_is_loopback_or_refused",
    "test_v12_3_2_the_token_is_never_sent_on",
    "test_v12_3_4_the_certificate_and_its_name_are_verified",
]

SWAPS = 2_000
SECRETS = 24


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    yield made
    made.close()


def test_v3_5_1_the_daemon_listens_on_no_port(home: Home) -> None:
    """A web page can reach ports of this machine, and no Unix socket: what does not listen cannot be rebound to."""
    process = home.start_daemon()
    listening = [
        found.laddr
        for found in psutil.Process(process.pid).net_connections(kind="inet")
        if found.status == psutil.CONN_LISTEN
    ]
    assert listening == []
    assert home.status()["daemon"]["running"]


def test_v13_3_1_everything_is_private_whatever_the_umask(home: Home) -> None:
    """Databases, logs, sockets, captures and folders: nothing for the group or others, with a umask of 000."""
    before = os.umask(0)
    try:
        process = home.start_daemon()
        home.capture("Stop", {"session_id": "s1"})
        home.ok("cloud", "tenant", "create", "acme")
        home.ok("cloud", "token", "create", "--tenant", "acme", "--user", "ann")
        process.terminate()
        process.wait(20)
    finally:
        os.umask(before)
    found = [path for path in home.root.rglob("*") if not path.is_symlink()]
    assert any(path.suffix == ".db" for path in found)
    exposed = [str(path) for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]
    # Folders above the private ones hold nothing but folders.
    assert [path for path in exposed if not Path(path).is_dir()] == []
    private = {home.paths.spool, home.paths.spool / "new", home.paths.cloud}
    assert [str(path) for path in private if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_v15_4_2_a_capture_that_is_swapped_while_it_is_opened_leads_nowhere(tmp_path: Path) -> None:
    """Somebody renames a link to a foreign file over the capture, again and again: only plain files are ever read."""
    folder = spool.ensure_spool(tmp_path) / "Stop-1-2-3.jsonl"
    foreign, link, plain = tmp_path / "foreign", tmp_path / "link", tmp_path / "plain"
    foreign.write_bytes(b"a secret of somebody else\n")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            link.unlink(missing_ok=True)
            link.symlink_to(foreign)
            link.rename(folder)
            plain.write_bytes(b"{}\n")
            plain.rename(folder)

    plain.write_bytes(b"{}\n")
    plain.rename(folder)
    thread = threading.Thread(target=swap)
    thread.start()
    read = refused = 0
    try:
        for _ in range(SWAPS):
            try:
                assert spool.read_capture(tmp_path, folder.name) in (b"{}\n", b"")
                read += 1
            except (LineRejected, FileNotFoundError) as error:
                # A file that was replaced between opening and looking has no name left.
                assert isinstance(error, FileNotFoundError) or error.reason in ("capture_symlink", "capture_hard_link")
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert read + refused == SWAPS and read and refused


def test_v5_3_2_a_name_in_the_spool_is_never_a_path(tmp_path: Path) -> None:
    """Whatever lies outside, no name leads there."""
    spool.ensure_spool(tmp_path)
    (tmp_path / "outside.jsonl").write_text("{}\n")
    for name in ("../outside.jsonl", "new/../../outside.jsonl", "/etc/passwd", "..", ".", "", "a\0b"):
        with pytest.raises(LineRejected) as refused:
            spool.read_capture(tmp_path, name)
        assert refused.value.reason == "capture_path"


def test_v14_2_1_secrets_in_payloads_reach_neither_store_nor_log(home: Home) -> None:
    """Planted into every field that is content; the captures are gone, and the bytes of everything left are searched."""
    process = home.start_daemon()
    chosen = planted_secrets(SECRETS)
    for number, (_, secret) in enumerate(chosen):
        home.capture(
            "PostToolUse",
            {
                "session_id": f"s{number}",
                "tool_name": "Bash",
                "tool_input": {"command": f"export KEY={secret}", "description": secret},
                "tool_response": {"stdout": secret, "stderr": secret},
                "cwd": f"/home/ann/{secret[:20].replace('/', '_')}",
                "prompt": secret,
            },
        )
    until(lambda: home.events() == SECRETS and not any((home.paths.spool / "new").iterdir()))
    process.terminate()
    process.wait(20)
    left = b"".join(path.read_bytes() for path in home.root.rglob("*") if path.is_file())
    assert [kind for kind, secret in chosen if any(trace.encode() in left for trace in traces(secret))] == []
    assert json.dumps("s3").strip('"').encode() in left


@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_v15_2_5_code_that_others_can_write_is_not_obeyed(tmp_path: Path, mode: int) -> None:
    """Neither the file of a plug-in nor any folder above it."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    plugin = folder / "plugin.py"
    plugin.write_text("def resolve(*_): return {}\n")
    assert find_weakness(plugin) is None
    for weak in (plugin, folder, folder.parent):
        before = weak.stat().st_mode
        weak.chmod(before | mode)
        assert (find_weakness(plugin) or "").startswith(str(weak))
        weak.chmod(before)
