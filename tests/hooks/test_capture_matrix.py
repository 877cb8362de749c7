"""Every way that files, shells and people go wrong, under every shell with every awk.

Cheap cases run in all pairs. Expensive ones run in pairs that have each shell and each awk once, and in all pairs
with `make soak`. Always: exit 0, nothing printed, and a line that a strict reader accepts means what was given.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricsd.spool import PAYLOAD_BYTES_MAX, captures_folder, parse_name
from tests.hooks.matrix import NOBODY, Pair, all_pairs, is_reading, some_pairs, until, wait_until_gone
from tests.hooks.programs import (
    CAPTURE,
    DEADLINE_S,
    SHELLS,
    lines_in,
    need,
    only_line,
    payload_of,
    run_capture,
    shell_command,
)


def _hold(line: bytes, payload: bytes) -> None:
    """Hold a line to the promise: without an end, or refused by a strict reader, or the payload itself."""
    if not line.endswith(b"\n"):
        assert b"\n" not in line
        return
    try:
        got = json.loads(line)
    except ValueError:
        return
    if "oversize" in got:
        assert got["oversize"] == len(payload)
        return
    bare = payload.replace(b"\0", b" ")
    assert got["payload"] == (json.loads(bare) if bare.strip() else None)


@all_pairs
def test_bytes_that_are_no_plain_json_are_kept_or_refused(pair: Pair, tmp_path: Path) -> None:
    """A byte order mark, bytes that are no UTF-8, and NULs never turn into another meaning."""
    text = b'{"a":"\xc2\xbd/x","b":[1]}'
    pair.run(text, tmp_path / "spool")
    assert payload_of(only_line(tmp_path / "spool")) == {"a": "½/x", "b": [1]}
    pair.run(b"\xef\xbb\xbf" + text, tmp_path / "spool")
    assert b'"payload":\xef\xbb\xbf' + text + b"}\n" in only_line(tmp_path / "spool")
    for payload in (b'{"a":"\xff\xfe\xc3"}', b'{"a":"\xed\xa0\x80"}', b"\x80\x81", b'{"a":1}\xff'):
        pair.run(payload, tmp_path / "spool")
        assert b'"payload":' + payload + b"}\n" in only_line(tmp_path / "spool")
    for payload in (b"\0", b'{"a":1}\0', b'\0{"a":1}', b'{"a":"\0/"}', b'{"a":1,\n\0"b":2}', b"1\0002", b"1\0\0\n2"):
        pair.run(payload, tmp_path / "spool")
        _hold(only_line(tmp_path / "spool"), payload)


@all_pairs
def test_small_sizes_and_edges_of_buffers_come_through(pair: Pair, tmp_path: Path) -> None:
    """0 bytes, 1, and one below, at and above 4 and 64 KiB, with the separator at the edge."""
    for size in (0, 1, 2, 4095, 4096, 4097, 65535, 65536, 65537):
        payload = b"7" * size if size < 9 else b'{"a":"' + b"x/" * ((size - 8) // 2) + b"/" * (size % 2) + b'"}'
        assert len(payload) == size
        pair.run(payload, tmp_path / "spool")
        assert payload_of(only_line(tmp_path / "spool")) == (json.loads(payload) if payload else None)


@some_pairs
def test_large_sizes_come_through_or_leave_a_note(pair: Pair, tmp_path: Path) -> None:
    """1 MB and the cap are kept whole; 20 MB leaves its size."""
    for size in (1_000_000, PAYLOAD_BYTES_MAX, 20_000_000):
        payload = b'{"a":"' + b"x/" * ((size - 8) // 2) + b'"}'
        pair.run(payload, tmp_path / "spool")
        got = json.loads(only_line(tmp_path / "spool"))
        assert got.get("oversize") == (None if size <= PAYLOAD_BYTES_MAX else size)
        assert ("payload" in got) == (size <= PAYLOAD_BYTES_MAX)
        if "payload" in got:
            assert len(got["payload"]["a"]) == size - 8


@all_pairs
def test_odd_names_of_folders_are_only_names(pair: Pair, tmp_path: Path) -> None:
    """Spaces, quotes, globs, variables, backslashes, a leading dash and a line break."""
    for name in ("a b", 'it\'s "x" `id` $HOME', "*?[a]", "back\\slash\\n", "-rf", "line\nbreak", "½ % %s"):
        pair.run(b'{"a":1}', tmp_path / name / "spool")
        assert payload_of(only_line(tmp_path / name / "spool")) == {"a": 1}
    pair.run(b'{"a":2}', Path("-p"), cwd=tmp_path)
    assert payload_of(only_line(tmp_path / "-p")) == {"a": 2}


@all_pairs
def test_links_in_the_spools_place_are_followed(pair: Pair, tmp_path: Path) -> None:
    """A spool or a `new` that is a link to a folder works; one that leads nowhere costs the event alone."""
    (tmp_path / "real" / "new").mkdir(parents=True)
    (tmp_path / "spool").symlink_to(tmp_path / "real")
    pair.run(b'{"a":1}', tmp_path / "spool")
    assert payload_of(only_line(tmp_path / "real")) == {"a": 1}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "new").symlink_to(tmp_path / "real" / "new")
    pair.run(b'{"a":2}', tmp_path / "other")
    assert payload_of(only_line(tmp_path / "real")) == {"a": 2}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    pair.run(b"{}", tmp_path / "loop")


@all_pairs
@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_the_tools_umask_changes_nothing(umask: int, pair: Pair, tmp_path: Path) -> None:
    """Files are 0600 in folders of 0700 under either extreme."""
    pair.run(b'{"a":1}', tmp_path / "s" / "spool", umask=umask)
    (file,) = captures_folder(tmp_path / "s" / "spool").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]
    assert payload_of(only_line(tmp_path / "s" / "spool")) == {"a": 1}


@all_pairs
def test_without_home_a_named_spool_still_works(pair: Pair, tmp_path: Path) -> None:
    """With nothing to find a spool by there is silence and no file anywhere."""
    folder = tmp_path / "empty"
    folder.mkdir()
    for spool in (None, tmp_path / "spool"):
        words = [*pair.command, str(CAPTURE), "app", "Stop", *([str(spool)] if spool else [])]
        done = subprocess.run(words, input=b"{}", capture_output=True, env=pair.env, cwd=folder, timeout=DEADLINE_S)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(folder.iterdir()) == []
    assert payload_of(only_line(tmp_path / "spool")) == {}


@all_pairs
def test_closed_and_odd_streams_are_silence(pair: Pair, tmp_path: Path) -> None:
    """stdin closed, a folder, or open for writing alone; stdout and stderr closed: exit 0 and no broken promise."""
    words = [*pair.command, str(CAPTURE), "app", "Stop", str(tmp_path / "spool")]
    for redirect in ("<&-", "<&- >&-", "<&- >&- 2>&-", "</", "<&1 >/dev/null"):
        done = subprocess.run(
            [need("sh"), "-c", f'"$@" {redirect}', "sh", *words],
            capture_output=True,
            env={**os.environ, **pair.env},
            timeout=DEADLINE_S,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), redirect
        for line in lines_in(tmp_path / "spool"):
            _hold(line, b"")
        shutil.rmtree(tmp_path / "spool")


@all_pairs
def test_a_payload_that_never_ends_leaves_no_process_when_the_tool_gives_up(pair: Pair, tmp_path: Path) -> None:
    """SIGTERM to the hook alone, its stdin still open: shell and awk are gone, and the line has no end."""
    process = pair.start(tmp_path / "spool")
    assert process.stdin is not None
    process.stdin.write(b'{"a":1}\n')
    process.stdin.flush()
    until(lambda: is_reading(process.pid))
    # Both are there, but the shell may still be on its way to `wait`: a signal is for it to take whenever it comes.
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    wait_until_gone(process.pid)
    process.stdin.close()
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()
    (line,) = lines_in(tmp_path / "spool")
    assert b"\n" not in line


@some_pairs
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_with_its_group_nothing_is_left(number: signal.Signals, pair: Pair, tmp_path: Path) -> None:
    """As a terminal or a tool that kills the whole tree does it."""
    process = pair.start(tmp_path / "spool")
    assert process.stdin is not None
    process.stdin.write(b'{"a":1}\n')
    process.stdin.flush()
    until(lambda: is_reading(process.pid))
    os.killpg(process.pid, number)
    process.wait(DEADLINE_S)
    wait_until_gone(process.pid)
    process.stdin.close()
    assert process.stdout is not None
    process.stdout.close()
    for line in lines_in(tmp_path / "spool"):
        assert b"\n" not in line


@some_pairs
def test_killed_alone_the_shell_leaves_a_capture_that_ends_with_the_payload(pair: Pair, tmp_path: Path) -> None:
    """After kill -9 of the hook's own process awk ends as soon as the tool lets go of the pipe; a cut payload is none."""
    process = pair.start(tmp_path / "spool")
    assert process.stdin is not None
    process.stdin.write(b'{"a":{"b":1}')
    process.stdin.flush()
    until(lambda: is_reading(process.pid))
    process.kill()
    process.wait(DEADLINE_S)
    process.stdin.close()
    wait_until_gone(process.pid)
    assert process.stdout is not None
    process.stdout.close()
    (line,) = lines_in(tmp_path / "spool")
    with pytest.raises(ValueError, match=r"delimiter|Expecting"):
        json.loads(line)


@all_pairs
def test_a_limit_on_file_sizes_never_leaves_half_a_line_with_an_end(pair: Pair, tmp_path: Path) -> None:
    """At any limit the file is whole or has no newline, and nothing is printed about it."""
    payload = json.dumps({"a": "x/y" * 4000}).encode()
    for limit in (0, 1, 512, 4096, 12_000, 1_000_000):
        pair.run(
            payload,
            tmp_path / "spool",
            preexec_fn=_limited(resource.RLIMIT_FSIZE, limit),
        )
        for line in lines_in(tmp_path / "spool"):
            assert line.endswith(b"\n") == (limit > len(payload))
            _hold(line, payload)
        shutil.rmtree(tmp_path / "spool")


@all_pairs
def test_more_limits_of_the_system_are_silence(pair: Pair, open_folder: Path) -> None:
    """No further process, few open files, little memory: exit 0, no output, and what is complete is right."""
    payload = b'{"a":"' + b"x/" * 50_000 + b'"}'
    shutil.copytree(pair.env["PATH"], open_folder / "bin", symlinks=True)
    spool = open_folder / "spool"
    captures_folder(spool).mkdir(parents=True)
    for folder in (spool, captures_folder(spool)):
        folder.chmod(0o777)
    # A limit on processes does not bind root. Below these a shell cannot even open its script.
    identity: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}
    limits = [(resource.RLIMIT_NOFILE, 16), (resource.RLIMIT_AS, 32 << 20)]
    # bash tries to fork for 15 seconds before it gives up.
    limits += [] if "bash" in pair.command[0] else [(resource.RLIMIT_NPROC, 0)]
    for kind, limit in limits:
        done = subprocess.run(
            [*pair.command, str(open_folder / "capture"), "app", "Stop", str(spool)],
            input=payload,
            capture_output=True,
            env={"PATH": str(open_folder / "bin")},
            timeout=DEADLINE_S,
            preexec_fn=_limited(kind, limit),
            cwd="/",
            **identity,
        )
        # zsh, when the system refuses it a process, ends at once and runs no trap: silent, but 1.
        expected = int("zsh" in pair.command[0] and kind == resource.RLIMIT_NPROC)
        assert (done.returncode, done.stdout, done.stderr) == (expected, b"", b""), kind
        for line in lines_in(spool):
            _hold(line, payload)


def _limited(kind: int, limit: int) -> Callable[[], None]:
    """Return what sets a limit in the child."""

    def apply() -> None:
        resource.setrlimit(kind, (limit, limit))

    return apply


@pytest.mark.parametrize("shell", SHELLS)
def test_without_any_awk_nothing_is_begun(shell: str, tmp_path: Path) -> None:
    """No file that would have to be quarantined later, and not even a folder."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for program in ("mkdir", "rm"):
        (binaries / program).symlink_to(need(program))
    run_capture(b"{}", tmp_path / "spool", shell=shell_command(shell), env={"PATH": str(binaries)})
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_an_awk_that_cannot_be_started_leaves_no_file(shell: str, tmp_path: Path) -> None:
    """One whose interpreter is missing is found but cannot run; the file that waits for it goes again."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for program in ("mkdir", "rm"):
        (binaries / program).symlink_to(need(program))
    (binaries / "awk").write_text("#!/no/such/interpreter\n")
    (binaries / "awk").chmod(0o755)
    run_capture(b"{}", tmp_path / "spool", shell=shell_command(shell), env={"PATH": str(binaries)})
    assert lines_in(tmp_path / "spool") == []


@all_pairs
def test_folders_that_another_user_may_not_write_are_silence(pair: Pair, open_folder: Path, tmp_path: Path) -> None:
    """A spool that cannot be made, one that cannot be entered and one that is read-only, as a user who is not root."""
    identity: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}
    binaries = open_folder / "bin"
    shutil.copytree(pair.env["PATH"], binaries, symlinks=True)
    for name, mode in (("missing", None), ("closed", 0o000), ("read-only", 0o555)):
        parent = open_folder / name
        new = captures_folder(parent / "spool")
        if mode is None:
            parent.mkdir(mode=0o555)
        else:
            new.mkdir(parents=True)
            new.chmod(mode)
        done = subprocess.run(
            [*pair.command, str(open_folder / "capture"), "app", "Stop", str(parent / "spool")],
            input=b"{}",
            capture_output=True,
            timeout=DEADLINE_S,
            cwd="/",
            env={"PATH": str(binaries)},
            **identity,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), name
        if mode is not None:
            new.chmod(0o755)
        assert [file for file in parent.rglob("*") if file.is_file()] == []


def _private(script: str, words: list[str], payload: bytes, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Run a script in a mount and process namespace of its own; skip loudly where that is not allowed."""
    command = [need("unshare"), "--mount", "--pid", "--fork", "--mount-proc"]
    command += ["--map-root-user"] if os.geteuid() != 0 else []
    done = subprocess.run(
        [*command, need("bash"), "-c", script, "bash", *words],
        input=payload,
        capture_output=True,
        timeout=DEADLINE_S,
        env={**os.environ, **env},
    )
    if done.returncode == 77 or b"unshare" in done.stderr:
        pytest.skip(f"no private namespace here ({done.stderr.decode().strip()}): this case was NOT tested")
    return done


@all_pairs
def test_a_reused_process_id_takes_a_new_name(pair: Pair, tmp_path: Path) -> None:
    """The same number four times in a row, as in a small range of them: four captures, each whole."""
    script = """
        last=/proc/sys/kernel/ns_last_pid
        [ -w $last ] || { echo "unshare: $last cannot be written" >&2; exit 77; }
        for n in 1 2 3 4; do
            echo 4000 >$last || exit 77
            echo "{\\"n\\": $n}" >"$0.json"
            "$@" <"$0.json"
        done
    """
    words = [*pair.command, str(CAPTURE), "app", "Stop", str(tmp_path / "spool")]
    script = script.replace("$0", str(tmp_path / "payload"))
    path = f"{pair.env['PATH']}:{os.environ['PATH']}"
    done = _private(script, words, b"", {"PATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    names = [parse_name(file.name) for file in captures_folder(tmp_path / "spool").iterdir()]
    assert len({(name.pid, name.ppid) for name in names}) == 1
    assert sorted(name.counter for name in names) == [0, 1, 2, 3]
    assert sorted(payload_of(line)["n"] for line in lines_in(tmp_path / "spool")) == [1, 2, 3, 4]


@some_pairs
@pytest.mark.parametrize("room", ["size=64k", "size=64k,nr_inodes=2", "size=64k,nr_inodes=1", "ro"])
def test_a_full_or_read_only_file_system_is_silence(room: str, pair: Pair, tmp_path: Path) -> None:
    """Out of blocks or out of files, on a real file system: exit 0, no output, no line with an end."""
    script = 'mount -t tmpfs -o "$1" none "$2" || exit 77; room=$2; shift 2; "$@"; echo "exit=$?"; cat "$room"/new/* 2>/dev/null'
    full = tmp_path / "full"
    full.mkdir()
    words = [room, str(full), *pair.command, str(CAPTURE), "app", "Stop", str(full)]
    payload = json.dumps({"a": "x/y" * 70_000}).encode()
    done = _private(script, words, payload, {"PATH": f"{pair.env['PATH']}:{os.environ['PATH']}"})
    assert done.stderr == b""
    first, _, rest = done.stdout.partition(b"\n")
    assert first == b"exit=0"
    assert b"\n" not in rest
    assert bool(rest) == (room == "size=64k")


_CLOCK_C = """
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static time_t now(void) { return (time_t)atoll(getenv("TEST_CLOCK")); }
time_t time(time_t *out) { time_t t = now(); if (out) *out = t; return t; }
int gettimeofday(struct timeval *tv, void *zone) { (void)zone; tv->tv_sec = now(); tv->tv_usec = 0; return 0; }
int clock_gettime(clockid_t clock, struct timespec *ts) { (void)clock; ts->tv_sec = now(); ts->tv_nsec = 0; return 0; }
"""


@pytest.fixture(scope="module")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes programs see the time of TEST_CLOCK."""
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(_CLOCK_C)
    command = [need("cc"), "-shared", "-fPIC", "-O1", "-w", "-o", str(folder / "clock.so"), str(folder / "clock.c")]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    return folder / "clock.so"


@all_pairs
def test_a_clock_set_back_costs_nothing(pair: Pair, awk: str, clock_library: Path, tmp_path: Path) -> None:
    """An hour back, to the epoch, and far ahead: each capture whole, with the second as the clock then said."""
    seen = []
    for clock in (1_800_000_000, 1_799_996_400, 1, 4_000_000_000):
        pair.run(b'{"a":1}', tmp_path / "spool", env={"LD_PRELOAD": str(clock_library), "TEST_CLOCK": str(clock)})
        got = json.loads(only_line(tmp_path / "spool"))
        assert got["payload"] == {"a": 1}
        seen.append(got["s"])
    if awk == "busybox-awk" and seen[0] != 1_800_000_000:
        pytest.skip("busybox is linked statically here: a clock set back was NOT tested with its awk")
    # A second of 0 asks the file for its time, which is what an awk without a clock says.
    assert seen == [1_800_000_000, 1_799_996_400, 1, 4_000_000_000] or set(seen) == {0}


@some_pairs
def test_sixty_four_at_once_in_a_spool_that_is_not_there(pair: Pair, tmp_path: Path) -> None:
    """Each has a file of its own with its own whole payload, whoever makes the folders."""
    processes = [pair.start(tmp_path / "a" / "b" / "spool") for _ in range(64)]
    for number, process in enumerate(processes):
        assert process.stdin is not None
        process.stdin.write(json.dumps({"n": number, "x": "y/z\n" * 3000}).encode())
        process.stdin.close()
    for process in processes:
        assert process.stdout is not None
        assert (process.stdout.read(), process.wait(DEADLINE_S)) == (b"", 0)
        process.stdout.close()
    got = [payload_of(line) for line in lines_in(tmp_path / "a" / "b" / "spool")]
    assert sorted(each["n"] for each in got) == list(range(64))
    assert all(each["x"] == "y/z\n" * 3000 for each in got)


@pytest.mark.soak
@all_pairs
def test_killed_at_any_moment_a_line_with_an_end_is_whole(pair: Pair, tmp_path: Path) -> None:
    """Hundreds of kills, each a little later than the one before, over a payload of many parts."""
    payload = json.dumps({"a": ["x/y" * 300] * 300}).encode()
    for step in range(300):
        process = pair.start(tmp_path / "spool")
        assert process.stdin is not None
        deadline = time.monotonic() + step * 20e-6
        try:
            process.stdin.write(payload)
            process.stdin.close()
        except BrokenPipeError:
            process.stdin = None
        while time.monotonic() < deadline:
            os.sched_yield()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)
        wait_until_gone(process.pid)
        assert process.stdout is not None
        process.stdout.close()
        if captures_folder(tmp_path / "spool").is_dir():
            for line in lines_in(tmp_path / "spool"):
                _hold(line, payload)
            shutil.rmtree(tmp_path / "spool")
